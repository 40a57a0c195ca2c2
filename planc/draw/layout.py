"""Where boxes go: forward down, backward up beside it, the update below; any other graph down, in columns.

Linear in the number of nodes, but for a sort. What a box says is `planc.draw.nodes`'s.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import ceil

from planc.draw.marks import arrow, box, curve, cut, label, line
from planc.draw.nodes import BOX, Item, Maker, settings, subplans_of
from planc.draw.phases import Phase, classify
from planc.ir import Graph, Node

_SIDE, _PAD, _SPACE = 44, 16, 13
_BETWEEN = 112  # columns: arrows cross here, and bend round boxes
_COLUMN = 1500  # a flow that is higher is broken into columns
_MOST_COLUMNS = 5
_BAR = 46


class Body:
    """The nodes of one graph. Measured when made; then placed; then drawn."""

    def __init__(self, graph: Graph, drawn: set[int] | None = None, looped: bool = False) -> None:
        """Lays out ``graph``.

        Args:
            graph: any valid graph.
            drawn: the identities of subplans that are drawn already: each is drawn once, so that the size of
                a drawing is linear in that of the plan.
            looped: whether it is the body of a scan.
        """
        drawn = set() if drawn is None else drawn
        self._step = step = classify(graph)
        self._looped = looped
        self._maker = maker = Maker(step)
        self._updates: list[Node] = step.of(Phase.UPDATE) if step.is_training else []
        columns: dict[Phase, list[Item]] = {phase: [] for phase in Phase}
        for node, phase in zip(graph.nodes, step.phases, strict=True):
            if step.is_training and phase is Phase.UPDATE:
                continue
            columns[phase].append(maker.make(node, phase, _nested(graph, node, drawn)))
        if step.is_training:
            forward = [item for p in (Phase.BATCH, Phase.FORWARD) for item in columns[p]]
            self._columns = [forward, columns[Phase.BACKWARD][::-1]]
            self._tall = _set_side_by_side(*self._widen())
        else:
            flow = [item for items in columns.values() for item in items]
            self._columns = [flow]
            self._widen()
            self._columns = _broken(flow)
            self._tall = max(_set_down(column) for column in self._columns)
        self._wide = max((item.width for column in self._columns for item in column), default=BOX)
        many = len(self._columns)
        right = _SIDE if step.is_training else _PAD
        self.width: float = _SIDE + many * self._wide + (many - 1) * _BETWEEN + right
        self._bars = list(_bars(self._updates))
        self._head = 34 if step.is_training else 10
        self.height: float = (
            self._head + self._tall + _PAD + (20 + _BAR * len(self._bars) if self._bars else 0)
        )
        self._x = self._y = 0.0
        self._levels = [[item.y for item in column] for column in self._columns]

    def place(self, x: float, y: float) -> None:
        """Move every box to its place below and right of this point."""
        self._x, self._y = x, y
        for i, (column, levels) in enumerate(zip(self._columns, self._levels, strict=True)):
            for item, level in zip(column, levels, strict=True):
                item.x, item.y = x + _SIDE + i * (self._wide + _BETWEEN), y + self._head + level

    def draw(self) -> Iterator[str]:
        """Every box and every arrow."""
        if self._step.is_training:
            yield from self._phases()
        yield from self._edges()
        for column in self._columns:
            for item in column:
                yield from item.draw()
        yield from self._update_bars()

    def _widen(self) -> list[list[Item]]:
        """Give all boxes the width of the widest: one that holds a drawing sets it."""
        width = max((item.least_width for column in self._columns for item in column), default=BOX)
        for column in self._columns:
            for item in column:
                item.width = width
        return self._columns

    def _phases(self) -> Iterator[str]:
        left, top = self._x + _SIDE, self._y + 20
        batch = bool(self._step.of(Phase.BATCH))
        yield label(left, top, "take the batch, forward ↓" if batch else "forward ↓", "phase")
        yield label(left + self._wide + _BETWEEN, top, "backward ↑", "phase")

    def _edges(self) -> Iterator[str]:
        """Neighbours by an arrow, others by a curve at the outer side; between columns across the middle."""
        where = {
            id(item): (c, at) for c, column in enumerate(self._columns) for at, item in enumerate(column)
        }
        made = {v.index: item for column in self._columns for item in column for v in item.node.results}
        for c, column in enumerate(self._columns):
            side = 1 if self._step.is_training and c else -1
            for at, item in enumerate(column):
                sources = {id(made[v.index]): made[v.index] for v in item.node.values() if v.index in made}
                for source in sources.values():
                    origin, place = where[id(source)]
                    if origin != c:
                        yield _across(source, item)
                    elif abs(place - at) == 1:
                        yield _neighbours(source, item)
                    else:
                        yield _around(source, item, side)

    def _update_bars(self) -> Iterator[str]:
        if not self._bars:
            return
        x, width = self._x + _SIDE, 2 * self._wide + _BETWEEN
        y = self._y + self._head + self._tall + 34
        count = len(self._step.gradients)
        yield label(x + width, y - 12, f"↓ {count} gradient{'s' if count != 1 else ''} ∇", "note", "end")
        for i, nodes in enumerate(self._bars):
            yield from self._bar(nodes, x, y + _BAR * i, width)
        if self._looped:
            # The way of the new parameters to the next batch.
            outer, top = x + width, self._y + 12
            way = f"M{outer + 2},{y + 18} h22 q8,0 8,-8 V{top + 8} q0,-8 -8,-8 h-14"
            yield line(way, "carry")
            yield label(outer + 8, top + 4, "carried to the next batch", "note", "end")

    def _bar(self, nodes: Sequence[Node], x: float, y: float, width: float) -> Iterator[str]:
        first = nodes[0]
        if first.op.startswith("opt."):
            params = first.operands[0]
            count = len(params) if isinstance(params, tuple) else 1
            told = ", ".join(filter(None, [settings(first), f"{count} parameter{'s' if count != 1 else ''}"]))
        else:
            told = ", ".join(path for node in nodes for path in self._maker.gives(node))
        times = f" × {len(nodes)}" if len(nodes) > 1 else ""
        yield box(x, y, width, 36, "node update", f"{first.op}{times}\n{told}")
        yield label(x + 12, y + 22, f"update: {first.op}{times}", "op")
        yield label(x + width - 12, y + 22, cut(told, 60), "type", "end")


def _nested(graph: Graph, node: Node, drawn: set[int]) -> Body | None:
    below = subplans_of(graph, node)
    if not below or id(below[0]) in drawn:
        return None
    drawn.add(id(below[0]))
    return Body(below[0], drawn, node.op == "scan")


def _bars(updates: Sequence[Node]) -> Iterator[list[Node]]:
    """The update's nodes: each of an optimizer by itself; all others by op (a network has many counters)."""
    groups: dict[str, list[Node]] = {}
    for i, node in enumerate(updates):
        groups.setdefault(f"{i}" if node.op.startswith("opt.") else node.op, []).append(node)
    yield from groups.values()


def _set_down(column: Sequence[Item]) -> float:
    y = 0.0
    for item in column:
        item.y = y
        y += item.height + _SPACE
    return max(0.0, y - _SPACE)


def _broken(flow: Sequence[Item]) -> list[list[Item]]:
    """A long flow in columns of about equal height."""
    total = sum(item.height + _SPACE for item in flow)
    count = max(1, min(_MOST_COLUMNS, ceil(total / _COLUMN)))
    columns: list[list[Item]] = [[]]
    y = 0.0
    for item in flow:
        if y >= total / count and len(columns) < count:
            columns.append([])
            y = 0.0
        columns[-1].append(item)
        y += item.height + _SPACE
    return columns


def _set_side_by_side(left: Sequence[Item], right: Sequence[Item]) -> float:
    """Place two columns so that as many of the right as can stand level with what they read."""
    anchors = [(-1, -1), *_anchors(left, right), (len(left), len(right))]
    y = 0.0
    for (i, j), (k, m) in pairwise(anchors):
        parts = left[max(i, 0) : k], right[max(j, 0) : m]
        need = max(sum(item.height + _SPACE for item in part) for part in parts)
        for part in parts:
            spare = need - sum(item.height + _SPACE for item in part)
            gap = min(27.0, spare / len(part)) if part else 0.0
            at = y
            for item in part:
                item.y = at
                at += item.height + _SPACE + gap
        y += need
    return max(0.0, y - _SPACE)


def _anchors(left: Sequence[Item], right: Sequence[Item]) -> list[tuple[int, int]]:
    """The longest chain of (left, right) where right reads left, both increasing."""
    made = {v.index: i for i, item in enumerate(left) for v in item.node.results}
    tails: list[int] = []  # the smallest left that a chain of each length can end in
    ends: list[tuple[int, int, int]] = []  # (left, right, the end before it) of such chains
    last: list[int] = []
    for j, item in enumerate(right):
        read = [made[v.index] for v in item.node.values() if v.index in made]
        if not read:
            continue
        i = max(read)
        length = bisect_left(tails, i)
        ends.append((i, j, last[length - 1] if length else -1))
        tails[length : length + 1] = [i]
        last[length : length + 1] = [len(ends) - 1]
    chain: list[tuple[int, int]] = []
    at = last[-1] if last else -1
    while at >= 0:
        i, j, at = ends[at]
        chain.append((i, j))
    return chain[::-1]


def _neighbours(a: Item, b: Item) -> str:
    x = a.x + a.width / 2
    return arrow(x, a.bottom, x, b.y - 2) if b.y > a.y else arrow(x, a.y, x, b.bottom + 2)


def _around(a: Item, b: Item, side: int) -> str:
    x = a.x if side < 0 else a.x + a.width
    bend = x + side * min(38, 12 + abs(b.middle - a.middle) / 12)
    return curve(x, a.middle, x + side * 2, b.middle, bend)


def _across(a: Item, b: Item) -> str:
    x1, x2 = a.x + a.width, b.x - 2
    return curve(x1, a.middle, x2, b.middle, (x1 + x2) / 2, "edge cross")


__all__ = ["Body"]
