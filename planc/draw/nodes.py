"""A drawing of a round's plan as inline SVG: inputs by role, the scan as a box with the training step inside.

Forward runs down, backward runs up beside it, the update stands below. Drawn from the graph alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from planc.ir import DimExpr, Graph, Input, Node, Output, Role
from planc.ir.dims import show
from planc.ops.structured import trip_count
from runtime.demo.phases import Phase, Step, classify, scan_of, state_paths

_CARD, _GAP, _BOX, _PAD = 244, 26, 236, 14
_COLUMN_GAP = 112
_SCAN = 2 * _BOX + _COLUMN_GAP + 2 * (_PAD + 40)
WIDTH = 2 * _CARD + 2 * _GAP + _SCAN
_LINE, _ROW, _SPACE = 26, 15, 13
_CHARACTERS = 34  # in a box, of the size that its text has

_INPUTS = {
    Role.ARGUMENT: "data: stays at its worker",
    Role.PARAMETER: "parameters: travel each round",
    Role.BUFFER: "buffers: travel each round",
    Role.OPTIMIZER: "optimizer state: stays there",
    Role.KEY: "random key: stays there",
}
_OUTPUTS = {
    Role.ARGUMENT: "results: come back",
    Role.PARAMETER: "parameters: come back",
    Role.BUFFER: "buffers: come back",
    Role.OPTIMIZER: "optimizer state: stays there",
    Role.KEY: "random key: stays there",
}


@dataclass(slots=True)
class _Placed:
    """A node's box."""

    node: Node
    notes: Sequence[str]
    x: float = 0
    y: float = 0

    @property
    def height(self) -> int:
        return _LINE + _ROW * len(self.notes)

    @property
    def middle(self) -> float:
        return self.y + self.height / 2


def draw(graph: Graph) -> str:
    """The drawing of a plan that scans a training step over batches, or of a training step itself."""
    found = scan_of(graph)
    step = classify(found[1] if found else graph)
    body = _Body(step, _GAP + _CARD, 0)
    outside = [] if found is None else [node for node in graph.nodes if node is not found[0]]
    top = 46 + 30 * len(outside) + (26 if outside else 0)
    box = list(body.place(top, "" if found is None else _scan_title(found[0])))
    inputs, left = _cards(graph.inputs, _INPUTS, 0)
    outputs, right = _cards(graph.outputs, _OUTPUTS, _GAP * 2 + _CARD + _SCAN)
    height = max(body.bottom, left, right) + 16
    level = top + 44
    arrows = [
        _arrow(_CARD + 2, level, _CARD + _GAP - 3, level),
        _arrow(_CARD + _GAP + _SCAN + 2, level, _CARD + 2 * _GAP + _SCAN - 3, level),
    ]
    title = escape(f"drawing of plan {graph.name}")
    parts = [
        f'<svg class="plan" viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{title}">',
        f"<title>{title}</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path class="tip" d="M0,0L8,4L0,8z"/></marker></defs>',
        *inputs,
        *outputs,
        *_outside(graph, outside, _GAP + _CARD, top),
        *box,
        *arrows,
        "</svg>",
    ]
    return "\n".join(parts)


def _scan_title(scan: Node) -> str:
    size = scan.attr("size", 0)
    trips = trip_count(scan)
    return f"scan: batches of {size} rows, {show(trips) if isinstance(trips, DimExpr) else trips} times"


def _cards(
    ports: Sequence[Input] | Sequence[Output], titles: Mapping[Role, str], x: float
) -> tuple[list[str], float]:
    """One card a role, below each other, and where the last ends."""
    out: list[str] = []
    y = 4.0
    for role, title in titles.items():
        mine = [port for port in ports if port.role is role]
        if not mine:
            continue
        height = 32 + 34 * len(mine)
        out.append(
            f'<rect class="card {role.value}" x="{x + 1}" y="{y}" width="{_CARD - 2}" height="{height}" '
            'rx="8"/>'
        )
        out.append(_text(x + 12, y + 20, title, "cardtitle"))
        for i, port in enumerate(mine):
            path = (
                "the loss of each step"
                if port.role is Role.ARGUMENT and isinstance(port, Output)
                else port.path
            )
            out.append(_text(x + 12, y + 40 + 34 * i, _cut(path, 32), "path"))
            out.append(_text(x + 12, y + 54 + 34 * i, str(port.value.type), "type"))
        y += height + 12
    return out, y


def _outside(graph: Graph, nodes: Sequence[Node], x: float, bottom: float) -> Iterator[str]:
    """What the plan does around its scan, one line a node, in the order that it runs."""
    yield _text(x, 20, f"plan {graph.name}", "title")
    for i, node in enumerate(nodes):
        y = 34 + 30 * i
        yield _box(x, y, _SCAN, _LINE, "outside", str(node.op))
        yield _text(x + 12, y + 17, _short(node.op), "op")
        yield _text(x + _SCAN - 12, y + 17, _types(node), "type", "end")
    if nodes:
        yield _arrow(x + _SCAN / 2, 34 + 30 * len(nodes) - 2, x + _SCAN / 2, bottom - 3)


class _Body:
    """The step inside the scan's box."""

    def __init__(self, step: Step, x: float, bottom: float) -> None:
        self._step = step
        self._x = x
        self.bottom = bottom
        paths = state_paths(step.graph)
        self._forward = [
            _Placed(n, self._notes(n, paths)) for p in (Phase.BATCH, Phase.FORWARD) for n in step.of(p)
        ]
        self._backward = [_Placed(n, self._notes(n, paths)) for n in step.of(Phase.BACKWARD)]

    def place(self, top: float, title: str) -> Iterator[str]:
        """Set every box in its place below ``top`` and draw all."""
        columns = (self._forward, self._backward)
        need = max(sum(p.height for p in c) + _SPACE * max(0, len(c) - 1) for c in columns)
        first = top + (64 if title else 44)
        left, right = self._x + _PAD + 40, self._x + _PAD + 40 + _BOX + _COLUMN_GAP
        self._spread(self._forward, left, first, need)
        self._spread(self._backward[::-1], right, first, need)
        updates = self._step.of(Phase.UPDATE)
        ground = first + need + 34
        self.bottom = ground + 46 * len(updates) + 14
        height = self.bottom - top
        yield f'<rect class="scan" x="{self._x}" y="{top}" width="{_SCAN}" height="{height}" rx="10"/>'
        if title:
            yield _text(self._x + 14, top + 22, title, "title")
        has_batch = bool(self._step.of(Phase.BATCH))
        yield _text(left, first - 10, "take the batch, forward ↓" if has_batch else "forward ↓", "phase")
        if self._backward:
            yield _text(right, first - 10, "backward ↑", "phase")
        yield from self._edges()
        for placed in (*self._forward, *self._backward):
            css = "backward" if placed in self._backward else "forward"
            yield from _node(placed, "batch" if placed.node in self._step.of(Phase.BATCH) else css)
        for i, node in enumerate(updates):
            yield from self._update(node, left, ground + 46 * i)
        if updates and self._backward:
            outer = right + _BOX + 42
            yield _text(
                right + _BOX, ground - 14, f"↓ {len(self._step.gradients)} gradients ∇", "note", "end"
            )
            yield from self._carry(outer, ground + 18, top)

    def _spread(self, column: Sequence[_Placed], x: float, first: float, need: float) -> None:
        spare = need - sum(p.height for p in column)
        gap = spare / (len(column) - 1) if len(column) > 1 else 0
        y = first
        for placed in column:
            placed.x, placed.y = x, y
            y += placed.height + min(gap, 40)

    def _notes(self, node: Node, paths: Mapping[int, str]) -> list[str]:
        """State that a node reads, and gradients that it gives."""
        read = [paths[v.index] for v in node.values() if v.index in paths]
        made = [self._step.gradients[v.index] for v in node.results if v.index in self._step.gradients]
        notes = [] if _fits(node) else [_shape(node)]
        notes += [f"reads {', '.join(dict.fromkeys(read))}"] if read else []
        return [*notes, f"∇ {', '.join(made)}"] if made else notes

    def _edges(self) -> Iterator[str]:
        """Neighbours by an arrow, others by a curve at the outer side; into backward across the middle."""
        made = {
            v.index: p for column in (self._forward, self._backward) for p in column for v in p.node.results
        }
        for column, side in ((self._forward, -1), (self._backward, 1)):
            for at, placed in enumerate(column):
                for source in dict.fromkeys(
                    made[v.index].node for v in placed.node.values() if v.index in made
                ):
                    origin = next(p for p in made.values() if p.node is source)
                    if origin not in column:
                        yield _across(origin, placed)
                    elif column.index(origin) == at - 1:
                        yield _neighbours(origin, placed)
                    else:
                        yield _around(origin, placed, side)

    def _update(self, node: Node, x: float, y: float) -> Iterator[str]:
        width = 2 * _BOX + _COLUMN_GAP
        params = node.operands[0]
        count = len(params) if isinstance(params, tuple) else 1
        rates = [o for o in node.operands if isinstance(o, float)]
        settings = [f"lr={rates[0]:g}"] if rates else []
        settings += [f"{name}={value}" for name, value in node.attrs]
        yield _box(x, y, width, 36, "update", node.op)
        yield _text(x + 12, y + 22, f"update: {node.op}", "op")
        yield _text(
            x + width - 12, y + 22, _cut(f"{', '.join(settings)} · {count} parameters", 60), "type", "end"
        )

    def _carry(self, x: float, y: float, top: float) -> Iterator[str]:
        """The way of the new parameters to the next batch."""
        way = f"M{x - 40},{y} h32 q8,0 8,-8 V{top + 34} q0,-8 -8,-8 h-14"
        yield f'<path class="carry" marker-end="url(#tip)" d="{way}"/>'
        yield _text(x - 30, top + 30, "carried to the next batch", "note", "end")


def _node(placed: _Placed, css: str) -> Iterator[str]:
    node = placed.node
    # All of backward comes from the one line that asks for the gradients: it would say nothing.
    where = f"\n{node.loc.text}" if node.loc and node.loc.text and css != "backward" else ""
    yield _box(placed.x, placed.y, _BOX, placed.height, css, f"{node.op}: {_types(node)}{where}")
    yield _text(placed.x + 9, placed.y + 17, _cut(_short(node.op), _CHARACTERS), "op")
    if _fits(node):
        yield _text(placed.x + _BOX - 9, placed.y + 17, _shape(node), "type", "end")
    for i, note in enumerate(placed.notes):
        css = "grad" if note.startswith("∇") else "reads" if note.startswith("reads") else "type"
        yield _text(placed.x + 9, placed.y + 32 + _ROW * i, _cut(note, _CHARACTERS + 2), css)


def _neighbours(a: _Placed, b: _Placed) -> str:
    x = a.x + _BOX / 2
    down = b.y > a.y
    return _arrow(x, a.y + a.height if down else a.y, x, b.y - 2 if down else b.y + b.height + 2)


def _around(a: _Placed, b: _Placed, side: int) -> str:
    x = a.x if side < 0 else a.x + _BOX
    bend = x + side * min(34, 12 + abs(b.middle - a.middle) / 12)
    return (
        f'<path class="edge" marker-end="url(#tip)" d="M{x},{a.middle:.1f} C{bend:.1f},{a.middle:.1f} '
        f'{bend:.1f},{b.middle:.1f} {x + side * 2},{b.middle:.1f}"/>'
    )


def _across(a: _Placed, b: _Placed) -> str:
    x1, x2 = a.x + _BOX, b.x - 2
    half = (x1 + x2) / 2
    return (
        f'<path class="edge cross" marker-end="url(#tip)" d="M{x1},{a.middle:.1f} C{half},{a.middle:.1f} '
        f'{half},{b.middle:.1f} {x2},{b.middle:.1f}"/>'
    )


def _arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path class="edge" marker-end="url(#tip)" d="M{x1:.1f},{y1:.1f} L{x2:.1f},{y2:.1f}"/>'


def _box(x: float, y: float, width: float, height: float, css: str, tip: str) -> str:
    return (
        f'<rect class="node {css}" x="{x}" y="{y:.1f}" width="{width}" height="{height}" rx="5">'
        f"<title>{escape(tip)}</title></rect>"
    )


def _text(x: float, y: float, text: str, css: str, anchor: str = "start") -> str:
    side = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}"{side}>{escape(text)}</text>'


def _types(node: Node) -> str:
    return ", ".join(str(value.type) for value in node.results)


def _shape(node: Node) -> str:
    """The type of the first result: the others (indices, a bias's gradient) follow from it."""
    return str(node.results[0].type)


def _fits(node: Node) -> bool:
    return len(_short(node.op)) + len(_shape(node)) + 2 <= _CHARACTERS


def _short(op: str) -> str:
    return op.removeprefix("aten.")


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


__all__ = ["WIDTH", "draw"]
