"""How drawings and pages look, in light and dark. The rules of a drawing are all below ``svg.plan``."""

_COLOURS = """\
  --page: #fbfbfc; --panel: #ffffff; --ink: #1c2330; --faint: #5d6879; --rule: #dfe3ea; --edge: #97a1b3;
  --blue: #2563a8; --orange: #c05c12; --green: #2f7d4f; --purple: #7446ab; --pink: #b03a6a; --red: #c2272d;
  --blue-fill: #e3effb; --orange-fill: #fdeedd; --green-fill: #e3f4e9; --purple-fill: #f0e8fa;
  --pink-fill: #fbe6ee; --grey-fill: #f1f3f6;"""

_DARK = """\
  --page: #12161d; --panel: #1a2029; --ink: #e4e9f1; --faint: #9aa6b8; --rule: #303948; --edge: #66728a;
  --blue: #7db4ee; --orange: #f0a263; --green: #7ecb9c; --purple: #bd9be8; --pink: #ec8fb3; --red: #ff8a86;
  --blue-fill: #1b2f47; --orange-fill: #3b2917; --green-fill: #1a3526; --purple-fill: #2e2342;
  --pink-fill: #3f2030; --grey-fill: #222a35;"""

_RULES = """\
svg.plan { display: block; max-width: none; background: var(--panel);
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
svg.plan text { fill: var(--ink); }
svg.plan .card { fill: var(--grey-fill); stroke: var(--edge); }
svg.plan .card.arg { fill: var(--blue-fill); stroke: var(--blue); }
svg.plan .card.param { fill: var(--orange-fill); stroke: var(--orange); }
svg.plan .card.buffer { fill: var(--green-fill); stroke: var(--green); }
svg.plan .card.optim { fill: var(--purple-fill); stroke: var(--purple); }
svg.plan .card.key { fill: var(--pink-fill); stroke: var(--pink); }
svg.plan .secret { fill: none; stroke: var(--red); stroke-width: 1.6; }
svg.plan text.private { fill: var(--red); font-size: 11px; font-weight: 600; }
svg.plan .cardtitle { font-size: 13px; font-weight: 600; }
svg.plan .title { font-size: 14px; font-weight: 600; }
svg.plan .phase { font-size: 13px; font-weight: 600; fill: var(--faint); }
svg.plan .note { font-size: 12px; fill: var(--faint); }
svg.plan .path, svg.plan .type, svg.plan .op, svg.plan .reads, svg.plan .data, svg.plan .grad {
  font-family: ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace; font-size: 11px; }
svg.plan .path, svg.plan .op { font-weight: 600; }
svg.plan .type { fill: var(--faint); }
svg.plan .reads { fill: var(--orange); }
svg.plan .data { fill: var(--blue); }
svg.plan .grad { fill: var(--green); }
svg.plan .frame { fill: none; stroke: var(--rule); }
svg.plan .scan { fill: none; stroke: var(--edge); stroke-width: 1.5; stroke-dasharray: 6 4; }
svg.plan .node { stroke: var(--edge); fill: var(--grey-fill); }
svg.plan .node.batch { fill: var(--blue-fill); stroke: var(--blue); }
svg.plan .node.forward { fill: var(--panel); stroke: var(--blue); }
svg.plan .node.backward { fill: var(--panel); stroke: var(--green); }
svg.plan .node.update { fill: var(--orange-fill); stroke: var(--orange); }
svg.plan .node.random { fill: var(--pink-fill); stroke: var(--pink); }
svg.plan .node.fused { fill: var(--purple-fill); stroke: var(--purple); }
svg.plan .node.view { fill: var(--panel); stroke: var(--edge); }
svg.plan .edge, svg.plan .carry { fill: none; stroke: var(--edge); stroke-width: 1.2; }
svg.plan .cross { stroke-dasharray: 3 3; opacity: .75; }
svg.plan .carry { stroke: var(--orange); stroke-width: 1.6; }
svg.plan .tip { fill: var(--edge); }
"""


_PAGE = """\
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 32px 20px 64px; max-width: 1240px; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1 { margin: 0 0 4px; font-size: 28px; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 44px 0 12px; font-size: 20px; }
p { margin: 8px 0; max-width: 80ch; }
.faint, .foot { color: var(--faint); }
.foot { font-size: 14px; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 12px;
  margin: 24px 0 0; padding: 0; }
.facts div, .panel { background: var(--panel); border: 1px solid var(--rule);
  border-radius: 10px; padding: 14px 16px; }
.facts dt { color: var(--faint); font-size: 14px; }
.facts dd { margin: 0; font-size: 24px; font-weight: 600; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 12px; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th { color: var(--faint); font-weight: 600; font-size: 14px; }
details { margin-top: 16px; } summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; padding: 14px 16px; background: var(--panel); border: 1px solid var(--rule);
  border-radius: 10px;  font: 12.5px/1.5 ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace; }
code { font-family: ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace; font-size: .92em;
  overflow-wrap: anywhere; }
"""


def page_style() -> str:
    """The style sheet of a whole page: text, figures and tables, in light and dark."""
    dark = "@media (prefers-color-scheme: dark) { :root {\n" + _DARK + " } }\n"
    return ":root { color-scheme: light dark;\n" + _COLOURS + " }\n" + dark + _PAGE


def drawing_style() -> str:
    """The style sheet that every drawing carries inside, so that it stands alone anywhere."""
    dark = "@media (prefers-color-scheme: dark) { svg.plan {\n" + _DARK + " } }\n"
    return "svg.plan { color-scheme: light dark;\n" + _COLOURS + " }\n" + dark + _RULES


__all__ = ["drawing_style", "page_style"]
