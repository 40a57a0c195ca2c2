"""A run of the harness as one page of HTML with plots, readable in light and dark; loads nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape

from benchmarks.harness import Report, Result, missed, seconds
from benchmarks.page import INTRODUCTION, command, section
from benchmarks.scaling import plots
from benchmarks.suites import suites
from benchmarks.targets import judged

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --paper: #fff; --soft: #5b6675; --line: #dde2e8;
  --base: #9aa5b1; --ours: #2463c5; --other: #8a5fb5; --bad: #b3261e; --good: #1a7f4b; --band: #f5f7f9; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --paper: #14181e; --soft: #9aa6b4;
  --line: #303843; --base: #667281; --ours: #6ba1f5; --other: #b791de; --bad: #ff8a80; --good: #6fd09c;
  --band: #1b2129; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 60rem; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; }
h2 { margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
p, .note { color: var(--soft); max-width: 48rem; } code { font-size: 0.9em; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.87rem; margin: 0.5rem 0 1.5rem; }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid var(--line); text-align: right;
  font-variant-numeric: tabular-nums; vertical-align: top; }
th { text-align: left; font-weight: 600; } td.words, th.words { text-align: left; }
tr:nth-child(even) td { background: var(--band); }
strong { color: var(--bad); } .reached { color: var(--good); }
svg { width: 100%; height: auto; max-width: 52rem; }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
svg .soft { fill: var(--soft); } svg .base { fill: var(--base); } svg .ours { fill: var(--ours); }
svg .other { fill: var(--other); } svg .rule { stroke: var(--line); }
svg polyline { stroke-width: 2; } svg polyline.ours, svg polyline.other { fill: none; }
svg polyline.ours { stroke: var(--ours); } svg polyline.other { stroke: var(--other); }
svg .limit { stroke: var(--bad); stroke-dasharray: 4 3; }
"""
_LEFT, _WIDTH, _BAR = 300, 780, 18


def html(report: Report) -> str:
    """The page, whole."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>planc: benchmarks</title><style>{_STYLE}</style></head><body>
{"".join(_parts(report))}</body></html>
"""


def _parts(report: Report) -> Iterator[str]:
    machine = ", ".join(f"{name} {value}" for name, value in report.machine.items())
    yield f"<h1>Benchmarks</h1><p>{_inline(INTRODUCTION)}</p>"
    yield f"<p>Made by <code>{escape(report.command)}</code> on: {escape(machine)}.</p><h2>Targets</h2>"
    yield _table([[*judged(report)[0]], *([*row.values()] for row in judged(report))])
    for name, suite in suites().items():
        tables = section(report, name)
        if not tables:
            continue
        again = f"Reproduce it with <code>{escape(command(name, report))}</code>."
        yield f"<h2>{escape(suite.title)}</h2><p>{_inline(suite.about)} {again}</p>"
        results = [result for result in report.results if result.suite == name]
        if results:
            for result, lines in zip(results, tables, strict=True):
                yield f"<h3>{escape(result.work)}</h3><p class=note>{_inline(lines[1])}</p>"
                yield bars(result) + _markdown(lines[2:])
        else:
            yield _counts_plot(report, name) + _markdown(tables[0])


def bars(result: Result) -> str:
    """The medians of a piece of work as bars, with its target where that is a ratio."""
    limit = re.fullmatch(r"<= ([\d.]+)x", result.target)
    base = result.figures[0].median
    values = [figure.median for figure in result.figures]
    rows = [
        (
            figure.name,
            figure.median,
            f"{seconds(figure.median)}  {figure.ratio:.2f}x" + (" missed" if missed(result, figure) else ""),
            "base" if place == 0 else "ours" if _is_ours(figure.name) else "other",
        )
        for place, figure in enumerate(result.figures)
    ]
    return _bars(result.work, rows, max(values), base * float(limit[1]) if limit else None)


def _is_ours(name: str) -> bool:
    return any(word in name for word in ("plan,", "plan ", "executable", "Federat", "pipelined"))


def _counts_plot(report: Report, name: str) -> str:
    """Messages of the jobs whose ways differ much, and how rounds grow; other tables speak for themselves."""
    if name == "scaling":
        return plots(report.tables[name])
    if name != "messages":
        return ""
    found: list[str] = []
    rows = report.tables[name]
    for work in dict.fromkeys(str(row["work"]) for row in rows if row["work"][:3] in ("T5 ", "T10", "T13")):
        mine = [row for row in rows if row["work"] == work]
        shown = [
            (
                str(row["way"]),
                float(row["messages"]),
                f"{row['messages']:,}",
                "other" if "quoted" in row["way"] else "ours" if "plan" in row["way"] else "base",
            )
            for row in mine
        ]
        found.append(f"<h3>{escape(work)}: messages</h3>{_bars(work, shown, max(r[1] for r in shown), None)}")
    return "".join(found)


def _bars(title: str, rows: list[tuple[str, float, str, str]], most: float, limit: float | None) -> str:
    """Horizontal bars: name, value, what stands behind the bar, and its colour."""
    scale = (_WIDTH - _LEFT - 130) / max(most, limit or 0)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {len(rows) * (_BAR + 8) + 8}" role="img" aria-label="{escape(title)}">'
    ]
    for place, (name, value, label, colour) in enumerate(rows):
        y, width = place * (_BAR + 8) + 4, max(1.0, value * scale)
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(_short(name))}</text>')
        parts.append(
            f'<rect class="{colour}" x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="2"/>'
        )
        parts.append(f'<text class="soft" x="{_LEFT + width + 6:.1f}" y="{y + 13}">{escape(label)}</text>')
    if limit is not None:
        x, bottom = _LEFT + limit * scale, len(rows) * (_BAR + 8)
        parts.append(
            f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{bottom}"><title>target</title></line>'
        )
    return "".join(parts) + "</svg>"


def _short(name: str) -> str:
    return name if len(name) <= 46 else f"{name[:45]}…"


def _markdown(lines: list[str]) -> str:
    """A table in Markdown, as the other page has it."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    words = [not mark.endswith(":") for mark in cells[1]]
    return _table([cells[0], *cells[2:]], words)


def _table(rows: list[list[str]], words: list[bool] | None = None) -> str:
    words = words or [True] * len(rows[0])

    def line(row: list[str], tag: str) -> str:
        kinds = (" class=words" if word else "" for word in words)
        return "".join(f"<{tag}{kind}>{_inline(cell)}</{tag}>" for kind, cell in zip(kinds, row, strict=True))

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows[1:])
    return f"<div class=wide><table><tr>{line(rows[0], 'th')}</tr>{body}</table></div>"


def _inline(text: str) -> str:
    """The Markdown that stands within a line."""
    text = re.sub(r"`(.+?)`", r"<code>\1</code>", escape(text, quote=False))
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text)
    return '<span class="reached">reached</span>' if text == "reached" else text
