"""The boxes of a drawing: what a node's box says, and its size. Where boxes go is `planc.draw.layout`'s."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from planc.draw.marks import box, cut, label
from planc.draw.phases import Phase, Step
from planc.ir import DimExpr, Graph, Node, Value
from planc.ir.dims import show
from planc.ops import Kind, Trait, find
from planc.ops.structured import trip_count

BOX = 236
"""The least width of a box."""
LINE, ROW = 26, 15
_CHARACTER = 6.65  # the width of one, in the size of a box's text
_BOLD = 9.0  # of one in the title of a box that holds a drawing: at most, since widths differ
_TITLE = 72
_PHASES = {Phase.BATCH: "batch", Phase.FORWARD: "forward", Phase.BACKWARD: "backward", Phase.UPDATE: "update"}

Note = tuple[str, str]
"""A line in a box: its class in the style sheet, and its text."""


class Nested(Protocol):
    """The drawing of a subplan inside the box of the node that runs it."""

    width: float
    height: float

    def place(self, x: float, y: float) -> None: ...

    def draw(self) -> Iterator[str]: ...


@dataclass(slots=True, eq=False)
class Item:
    """A node's box. Its place and width are given to it; its height follows."""

    node: Node
    title: str
    css: str
    tip: str
    notes: Sequence[Note]
    body: Nested | None = None
    x: float = 0
    y: float = 0
    width: float = BOX

    @property
    def least_width(self) -> float:
        return max(BOX, self.body.width, 18 + len(self.title) * _BOLD) if self.body else BOX

    @property
    def lines(self) -> list[Note]:
        """What stands below the title: the type where it has no room beside it, then the notes."""
        # What runs a subplan may give anything: the drawing below says more than the type of the first.
        return list(self.notes) if self.body or self._fits else [("type", shape(self.node)), *self.notes]

    @property
    def _fits(self) -> bool:
        return (len(self.title) + len(shape(self.node)) + 2) * _CHARACTER <= self.width - 18

    @property
    def height(self) -> float:
        return LINE + ROW * len(self.lines) + (self.body.height if self.body else 0)

    @property
    def middle(self) -> float:
        """Where arrows arrive: half way down, or at the title where there is a drawing below it."""
        return self.y + (LINE / 2 if self.body else self.height / 2)

    @property
    def bottom(self) -> float:
        return self.y + self.height

    def draw(self) -> Iterator[str]:
        lines, most = self.lines, int((self.width - 16) / _CHARACTER)
        css = "scan" if self.body else f"node {self.css}"
        yield box(self.x, self.y, self.width, self.height, css, self.tip, 10 if self.body else 5)
        title = "title" if self.body else "op"
        yield label(self.x + 9, self.y + 17, self.title if self.body else cut(self.title, most), title)
        if self._fits and not self.body:
            yield label(self.x + self.width - 9, self.y + 17, shape(self.node), "type", "end")
        for i, (css, note) in enumerate(lines):
            yield label(self.x + 9, self.y + 32 + ROW * i, cut(note, most), css)
        if self.body:
            self.body.place(self.x, self.y + LINE + ROW * len(lines))
            yield from self.body.draw()


class Maker:
    """Makes the boxes of one graph's nodes."""

    def __init__(self, step: Step) -> None:
        graph = step.graph
        self._step = step
        self._state = {p.value.index: p.path for p in graph.inputs if p.role.is_state}
        self._state |= {c.value.index: f"constant {c.digest[:8]}" for c in graph.constants}
        self._data = {p.value.index: p.path for p in graph.inputs if not p.role.is_state}
        self._out: dict[int, list[str]] = {}
        self._updates: set[int] = set()
        for port in graph.outputs:
            self._out.setdefault(port.value.index, []).append(port.path)
            self._updates |= {port.value.index} if port.role.is_state else set()

    def make(self, node: Node, phase: Phase, body: Nested | None) -> Item:
        """The box of ``node``; ``body`` is the drawing of the subplan that it runs."""
        css = _PHASES[phase] if self._step.is_training else _kind(node)
        name = cut(title(self._step.graph, node), _TITLE)
        return Item(node, name, css, self._tip(node, phase), self._notes(node), body)

    def gives(self, node: Node) -> list[str]:
        """The outputs of the graph that a node's results are."""
        return self._given(iter(node.results))

    def _given(self, values: Iterator[Value]) -> list[str]:
        return [path for v in values for path in self._out.get(v.index, ())]

    def _notes(self, node: Node) -> list[Note]:
        """What a node reads that no arrow shows, the gradients that it gives, and the outputs."""
        made = [self._step.gradients[v.index] for v in node.results if v.index in self._step.gradients]
        found: list[tuple[str, str, Sequence[str]]] = [
            ("data", "reads ", _named(node.values(), self._data)),
            ("reads", "reads ", _named(node.values(), self._state)),
            ("grad", "∇ ", made),
            ("data", "→ ", self._given(v for v in node.results if v.index not in self._updates)),
            ("reads", "→ new ", self._given(v for v in node.results if v.index in self._updates)),
        ]
        return [(css, word + _together(names)) for css, word, names in found if names]

    def _tip(self, node: Node, phase: Phase) -> str:
        attrs = ", ".join(f"{name}={_shown(value)}" for name, value in node.attrs)
        # All of backward comes from the one line that asks for the gradients: it would say nothing.
        where = node.loc.text if node.loc and phase is not Phase.BACKWARD else ""
        lines = [f"{node.op}: {', '.join(str(v.type) for v in node.results)}", attrs, where]
        return "\n".join([*filter(None, lines), *(text for _, text in self._notes(node))])


def title(graph: Graph, node: Node) -> str:
    """A node's op, and what it runs if it runs a subplan."""
    below = subplans_of(graph, node)
    op = node.op.removeprefix("aten.")
    if not below:
        return op
    if node.op != "scan":
        return f"{op} {below[0].name}"
    trips, rows = trip_count(node), node.attr("size", 0)
    times = f"{show(trips) if isinstance(trips, DimExpr) else trips} times"
    return (
        f"scan {below[0].name}: batches of {rows} rows, {times}" if rows else f"scan {below[0].name}: {times}"
    )


def subplans_of(graph: Graph, node: Node) -> list[Graph]:
    """The subplans that a node runs: by the op table, so that new ops that run some are drawn as such too."""
    definition = find(node.op)
    names = {p.name for p in definition.attrs if p.kind is Kind.SUBPLAN} if definition else set[str]()
    return [graph.subplans[v] for name, v in node.attrs if name in names and isinstance(v, int)]


def shape(node: Node) -> str:
    """The type of the first result: the others (indices, a bias's gradient) follow from it."""
    return str(node.results[0].type) if node.results else ""


def settings(node: Node) -> str:
    """The numbers that an optimizer's op works with, in short."""
    rates = [operand for operand in node.operands if isinstance(operand, float)]
    shown = [f"lr={rates[0]:g}"] if rates else []
    return ", ".join([*shown, *(f"{name}={_shown(value)}" for name, value in node.attrs)])


def _named(values: Iterator[Value], names: Mapping[int, str]) -> list[str]:
    return list(dict.fromkeys(names[v.index] for v in values if v.index in names))


def _together(paths: Sequence[str]) -> str:
    """Paths in a line, what they begin with said once: ``layer1.0.bn1: weight, bias``."""
    stem = paths[0].rpartition(".")[0]
    if len(paths) < 2 or not stem or not all(path.startswith(f"{stem}.") for path in paths):
        return ", ".join(paths)
    return f"{stem}: {', '.join(path[len(stem) + 1 :] for path in paths)}"


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return str(value)


def _kind(node: Node) -> str:
    """How a box looks in a graph without phases: by what its op is like."""
    definition = find(node.op)
    if node.op.startswith("opt."):
        return "update"
    if node.op.startswith("fused."):
        return "fused"
    if definition is not None and (definition.has(Trait.RANDOM) or node.op.startswith("random.")):
        return "random"
    return "view" if definition is not None and definition.has(Trait.VIEW) else "forward"


__all__ = [
    "BOX",
    "LINE",
    "ROW",
    "Item",
    "Maker",
    "Nested",
    "Note",
    "settings",
    "shape",
    "subplans_of",
    "title",
]
