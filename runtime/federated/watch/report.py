"""A run as one HTML page that needs nothing else: curves, traffic, stragglers, failures, settings.

Its look is in report.html and the style sheets of plans' pages; what it says is all from the run's events.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

from rich.filesize import decimal

import planc
from planc.draw.marks import safe
from planc.draw.style import page_style
from planc.text.suggest import count_of
from runtime.charts import chart_style, plain
from runtime.federated.events import Event, RoundFailed, RunDone, Setting
from runtime.federated.watch.curves import charts, rate
from runtime.federated.watch.history import History, RoundRecord, all_measured

_SHOWN = 40
"""Rows of a table at most: of failures, workers and the rounds in full."""


class Report:
    """A callback that writes the page when the run ends, and now and then while it goes on.

    Args:
        path: of the page.
        title: of the page.
        every: seconds between two pages while the run goes on.
        before: events of this run's earlier part, where it is resumed.

    Raises (when the page is written):
        OSError: it cannot be.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        title: str = "A federated run",
        every: float = 30.0,
        before: Iterable[Event] = (),
    ) -> None:
        self.path = Path(path)
        self._title = title
        self._every = every
        self._history = History.of(before)
        self._written = time.monotonic()

    def __call__(self, event: Event) -> None:
        self._history.add(event)
        due = time.monotonic() - self._written >= self._every
        if due or isinstance(event, RunDone | RoundFailed):
            self.write()

    def write(self) -> None:
        """The page as of now, wholly or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f"{self.path.name}.{secrets.token_hex(6)}.tmp")
        try:
            temporary.write_text(render(self._history, self._title), encoding="utf-8")
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)
        self._written = time.monotonic()


def render(history: History, title: str = "A federated run") -> str:
    """The page."""
    template = Template(files("runtime.federated.watch").joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=safe(title),
        style=page_style() + chart_style(),
        summary=safe(_summary(history)),
        facts="\n".join(f"<div><dt>{safe(k)}</dt><dd>{safe(v)}</dd></div>" for k, v in _facts(history)),
        body="\n".join(_body(history)),
        made=safe(f"Made by planc {planc.__version__} from the events of the run."),
    )


def _summary(history: History) -> str:
    start, end = history.start, history.end
    if start is None:
        return "No run has begun: there are no events."
    what = f"{start.clients:,} clients at {count_of(len(start.workers), 'worker')}, seed {start.seed}. "
    if end is not None:
        return f"{what}It ended after {count_of(end.rounds, 'round')}: {end.why}."
    last = max(history.rounds, default=0)
    return f"{what}It has not ended: the last thing known is of round {last} of {start.rounds}."


def _facts(history: History) -> Iterator[tuple[str, str]]:
    results = history.results()
    yield "rounds done", f"{len(results):,}"
    for name in ("accuracy", "loss"):
        if (value := history.last(name)) is not None:
            yield f"last {name}", rate(value) if name == "accuracy" else f"{value:.4f}"
    yield "clients that counted", f"{sum(done.contributions for done in results):,}"
    if results:
        yield "messages a round", f"{sum(done.messages for done in results) / len(results):,.3g}"
        yield "bytes, both ways", decimal(sum(done.bytes_out + done.bytes_in for done in results))
        yield "seconds a round", f"{sum(done.seconds for done in results) / len(results):.3g}"
    bad = sum(len(r.failed) + r.late + r.dropped for r in history.rounds.values())
    yield "clients that did not", f"{bad:,}"


def _body(history: History) -> Iterator[str]:
    drawn = [
        f'<div class="panel"><h3>{safe(chart.title)}</h3>\n{chart.draw()}\n</div>'
        for chart in charts(history)
    ]
    if drawn:
        yield '<h2>Round by round</h2>\n<div class="charts">'
        yield from drawn
        yield "</div>"
    yield from _workers(history)
    yield from _failures(history)
    yield from _settings(history)
    if history.rounds:
        yield "<details><summary>Every round in numbers</summary>"
        yield _rounds(list(history.rounds.values()))
        yield "</details>"


def _workers(history: History) -> Iterator[str]:
    """Stragglers: who takes how long, and how often the others waited for it."""
    found = history.stragglers()
    if not found:
        return
    most = max(straggler.mean for straggler in found.values()) or 1.0
    rows = [
        (
            safe(worker),
            f"{s.rounds:,}",
            f'{s.mean:.3g}<span class="meter"><i style="width:{100 * s.mean / most:.0f}%"></i></span>',
            f"{s.worst:.3g}",
            f"{s.last:,}",
        )
        for worker, s in list(found.items())[:_SHOWN]
    ]
    yield "<h2>Workers, the slowest first</h2>"
    yield _table(("worker", "rounds", "seconds a round, mean", "worst", "rounds that waited for it"), rows)
    yield _cut(len(found))


def _failures(history: History) -> Iterator[str]:
    """What went wrong: rounds, workers, clients."""
    rounds = [
        (str(record.number), safe(record.end.why))
        for record in history.rounds.values()
        if isinstance(record.end, RoundFailed)
    ]
    workers = [
        (
            str(event.number),
            safe(event.worker),
            safe(event.why),
            str(len(event.rescheduled)),
            str(len(event.dropped)),
        )
        for event in history.lost
    ]
    refused = [
        (str(event.number), safe(event.worker), safe(event.why), "0", str(len(event.dropped)))
        for event in history.refused
    ]
    clients = [(safe(why), f"{count:,}") for why, count in history.reasons().most_common()]
    skipped = [(safe(event.path), safe(event.why)) for event in history.skipped]
    parts = [
        ("Rounds that failed", ("round", "why"), rounds, (1,)),
        (
            "Workers lost or refusing",
            ("round", "worker", "why", "clients rescheduled", "dropped"),
            workers + refused,
            (1, 2),
        ),
        ("Clients that failed", ("why", "times"), clients, (0,)),
        ("Checkpoints that were damaged", ("file", "why"), skipped, (0, 1)),
    ]
    yield "<h2>Failures</h2>"
    if not any(rows for _, _, rows, _ in parts):
        yield "<p>None: every client that was drawn counted, or was late.</p>"
    for title, head, rows, words in parts:
        if rows:
            yield _table(head, rows[:_SHOWN], words, title)
            yield _cut(len(rows))


def _settings(history: History) -> Iterator[str]:
    if history.start is None:
        return
    yield "<h2>Settings</h2>"
    rows = [
        f"<div><dt>{safe(key)}</dt><dd>{safe(_setting(value))}</dd></div>"
        for key, value in history.start.config.items()
    ]
    if rows:
        yield f'<div class="panel"><dl class="settings">{"".join(rows)}</dl></div>'
    told = [f"The plan of the clients: <code>{safe(history.start.plan_id)}</code>"]
    if history.resumed:
        told.append(f"Resumed before round {', '.join(map(str, history.resumed))}")
    if history.checkpoints:
        last = history.checkpoints[-1]
        told.append(f"The last checkpoint, after round {last.number}: <code>{safe(last.path)}</code>")
    yield from (f'<p class="foot">{text}</p>' for text in told)


def _setting(value: Setting) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _rounds(records: Sequence[RoundRecord]) -> str:
    names = list(dict.fromkeys(name for r in records if r.result for name in all_measured(r.result)))
    head = ("round", "drawn", "counted", "failed", "late", "dropped", *names, "messages", "bytes", "seconds")
    rows: list[tuple[str, ...]] = []
    for record in records:
        done = record.result
        counts = (len(record.failed), record.late, record.dropped)
        if done is None:
            rows.append(
                (str(record.number), f"{record.cohort:,}", "-", *map(str, counts), *["-"] * (len(names) + 3))
            )
            continue
        values = all_measured(done)
        rows.append(
            (
                str(record.number),
                f"{record.cohort:,}",
                f"{done.contributions:,}",
                *map(str, counts),
                *(plain(values[name]) if name in values else "-" for name in names),
                f"{done.messages:,}",
                decimal(done.bytes_out + done.bytes_in),
                f"{done.seconds:.3g}",
            )
        )
    return _table(head, rows)


def _table(
    head: Sequence[str], rows: Iterable[Sequence[str]], words: Collection[int] = (), title: str = ""
) -> str:
    """A table in a panel. Cells are HTML; the columns ``words`` hold text and are set to the left."""
    css = [' class="words"' if column in words else "" for column in range(len(head))]
    cells = "".join(f"<th{c}>{safe(name)}</th>" for c, name in zip(css, head, strict=True))
    body = "\n".join(
        "<tr>" + "".join(f"<td{c}>{cell}</td>" for c, cell in zip(css, row, strict=True)) + "</tr>"
        for row in rows
    )
    above = f"<h3>{safe(title)}</h3>" if title else ""
    return (
        f'<div class="panel scroll">{above}<table><thead><tr>{cells}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _cut(count: int) -> str:
    return f'<p class="foot">and {count - _SHOWN:,} more</p>' if count > _SHOWN else ""


__all__ = ["Report", "render"]
