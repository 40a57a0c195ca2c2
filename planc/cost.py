"""What a plan costs at given sizes, before it runs: FLOPs, bytes moved, peak memory. Measures nothing.

Memory is that of the plan as the reference interpreter would run it with results freed after their last use:
what an executor keeps for the next run, and what it needs less by writing in place, is its own affair.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from planc.ir import Graph, Location, Node, TensorType, Value
from planc.ir.binding import bind, sizes_of
from planc.ir.dims import evaluate
from planc.ops import Trait, full_attrs, lookup
from planc.ops.apply import operand_type, result_types
from planc.ops.structured import batch_name, scan_operands, subplan_of, trip_count


@dataclass(frozen=True, slots=True)
class NodeCost:
    """One node's share.

    The figures of a node that runs a subplan are those of all that it runs, so rows of level 0 add up to the
    plan. ``times`` is how often the node runs in one run of the plan; the figures are for all of them.
    """

    level: int
    plan: str
    index: int
    op: str
    types: tuple[TensorType, ...]
    times: int
    flops: int
    bytes_moved: int
    loc: Location | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run of a plan costs.

    Attributes:
        flops: floating-point operations.
        bytes_moved: operands read and results written, views aside.
        peak_bytes: the most memory that tensors take at once, inputs and constants included.
        argument_bytes: what a caller passes: the tensors of the one message that a call is, all passed along.
        state_bytes: what the plan keeps between runs.
        constant_bytes: the plan's constants, each counted once.
        result_bytes: what a caller gets back: the tensors of the reply, where results are fetched.
        update_bytes: the state that a run replaces.
        nodes: how many nodes there are in the plan, in its subplans, in theirs, ...
        rows: one entry a node, a subplan's nodes following the node that runs them.
    """

    flops: int
    bytes_moved: int
    peak_bytes: int
    argument_bytes: int
    state_bytes: int
    constant_bytes: int
    result_bytes: int
    update_bytes: int
    nodes: tuple[int, ...]
    rows: tuple[NodeCost, ...]

    @property
    def messages(self) -> int:
        """The messages that a call at a worker takes: one, whatever it takes and returns."""
        return 1


def cost(graph: Graph, dims: Mapping[str, int] | None = None) -> Cost:
    """The cost of one run of ``graph`` with its named dims at these sizes.

    A dim that others define needs no size.

    Raises:
        InputError: a size is missing, outside its range, not related to others as the plan says, or for a dim
            that the plan does not have.
    """
    sizes = sizes_of(graph, dims or {})
    level = _level(graph, sizes, 0)
    arguments = _total((port.value.type for port in graph.arguments()), sizes)
    state = _total((port.value.type for port in graph.state()), sizes)
    stored = {constant.digest: constant.value.type for sub in graph.walk() for constant in sub.constants}
    constants = _total(stored.values(), {})
    return Cost(
        flops=level.flops,
        bytes_moved=level.bytes_moved,
        peak_bytes=arguments + state + constants + level.peak,
        argument_bytes=arguments,
        state_bytes=state,
        constant_bytes=constants,
        result_bytes=_total((port.value.type for port in graph.results()), sizes),
        update_bytes=_total((port.value.type for port in graph.updates()), sizes),
        nodes=_nodes_by_level(graph),
        rows=level.rows,
    )


@dataclass(frozen=True, slots=True)
class _Level:
    """One graph's rows, and its peak memory beyond its inputs and constants."""

    rows: tuple[NodeCost, ...] = ()
    peak: int = 0

    @property
    def flops(self) -> int:
        return sum(row.flops for row in self._own())

    @property
    def bytes_moved(self) -> int:
        return sum(row.bytes_moved for row in self._own())

    def _own(self) -> Iterable[NodeCost]:
        top = min((row.level for row in self.rows), default=0)
        return (row for row in self.rows if row.level == top)

    def times(self, count: int) -> _Level:
        """The same run ``count`` times, one after the other."""
        rows = tuple(
            replace(
                row, times=row.times * count, flops=row.flops * count, bytes_moved=row.bytes_moved * count
            )
            for row in self.rows
        )
        return _Level(rows, self.peak if count else 0)

    def plus(self, other: _Level) -> _Level:
        """This, and then ``other``: runs of the same graph, at other sizes."""
        rows = tuple(
            replace(
                a,
                times=a.times + b.times,
                flops=a.flops + b.flops,
                bytes_moved=a.bytes_moved + b.bytes_moved,
            )
            for a, b in zip(self.rows, other.rows, strict=True)
        )
        return _Level(rows, max(self.peak, other.peak))


def _level(graph: Graph, sizes: Mapping[str, int], depth: int) -> _Level:
    rows: list[NodeCost] = []
    memory = _Memory(graph, sizes)
    for i, node in enumerate(graph.nodes):
        below = _Level()
        working = 0
        if node.op == "call":
            below, working = _call(graph, node, sizes, depth)
        elif node.op == "scan":
            below, working = _scan(graph, node, sizes, depth)
        flops, moved = below.flops, below.bytes_moved
        if not lookup(node.op).has(Trait.STRUCTURED):
            flops, moved = flops_of(node, sizes), _moved(node, sizes)
        rows.append(NodeCost(depth, graph.name, i, node.op, result_types(node), 1, flops, moved, node.loc))
        rows.extend(below.rows)
        memory.run(i, node, working)
    return _Level(tuple(rows), memory.peak)


def _call(graph: Graph, node: Node, sizes: Mapping[str, int], depth: int) -> tuple[_Level, int]:
    """What a call runs, and the memory that it takes beyond what is live around it."""
    body = subplan_of(graph, node)
    (args,) = node.operands
    assert isinstance(args, tuple)
    types = [_static(value.type, sizes) for value in args if value is not None]
    level = _level(body, bind(body, types), depth + 1)
    return level, level.peak


def _scan(graph: Graph, node: Node, sizes: Mapping[str, int], depth: int) -> tuple[_Level, int]:
    """What a scan runs in all its trips, and the memory that it takes beyond what is live around it."""
    body = subplan_of(graph, node)
    carry, over, given = ([_static(v.type, sizes) for v in group] for group in scan_operands(node))
    trips = evaluate(trip_count(node), sizes)

    def trip(rows: int) -> _Level:
        batches = [TensorType(t.dtype, (rows, *t.shape[1:])) for t in over]
        return _level(body, bind(body, [*carry, *batches, *given]), depth + 1)

    size = node.attr("size", 0)
    assert isinstance(size, int)
    last = 0
    if over and not node.attr("drop_last", False) and batch_name(body, len(carry), len(over)) is not None:
        rows = over[0].shape[0]
        assert isinstance(rows, int)
        last = rows % size
    if last:
        level = trip(last) if trips == 1 else trip(size).times(trips - 1).plus(trip(last))
    else:
        level = trip(size).times(trips)
    collected = _total((v.type for v in node.results[len(carry) :]), sizes)
    # From the second trip on, the carry of the trip before is alive besides the one that came in.
    carried = _total(carry, {}) if trips > 1 else 0
    return level, level.peak + collected + carried


class _Memory:
    """Walks a graph's nodes keeping count of the bytes alive beyond its inputs and constants."""

    def __init__(self, graph: Graph, sizes: Mapping[str, int]) -> None:
        self._sizes = sizes
        self._bytes: dict[int, int] = {}  # owners that are alive
        self._owner: dict[int, int] = {}
        self._alive = 0
        self.peak = 0
        for node in graph.nodes:
            base = next(node.values(), None) if lookup(node.op).has(Trait.VIEW) else None
            for value in node.results:
                self._owner[value.index] = value.index if base is None else self._own(base)
        self._last: dict[int, int] = {}
        for i, node in enumerate(graph.nodes):
            for value in (*node.values(), *node.results):
                self._last[self._own(value)] = i
        for port in graph.outputs:
            self._last[self._own(port.value)] = len(graph.nodes)

    def run(self, index: int, node: Node, working: int) -> None:
        """Account for a node: its results appear beside its operands, then what it used last goes.

        Args:
            index: the node's number.
            working: bytes that it takes while it runs; results of structured ops are part of them.
        """
        before = self._alive
        for value in node.results:
            if self._own(value) == value.index:
                self._bytes[value.index] = _total([value.type], self._sizes)
                self._alive += self._bytes[value.index]
        self.peak = max(self.peak, before + working, self._alive)
        for value in (*node.values(), *node.results):
            owner = self._own(value)
            if self._last[owner] == index:
                self._alive -= self._bytes.pop(owner, 0)

    def _own(self, value: Value) -> int:
        return self._owner.get(value.index, value.index)


def flops_of(node: Node, sizes: Mapping[str, int]) -> int:
    """The floating-point operations of one node, subplans not included, with named dims at these sizes."""
    definition = lookup(node.op)
    operands = tuple(operand_type(operand) for operand in node.operands)
    attrs = full_attrs(definition, node.attrs)
    return evaluate(definition.flops(operands, attrs, result_types(node)), sizes)


def _moved(node: Node, sizes: Mapping[str, int]) -> int:
    if lookup(node.op).has(Trait.VIEW):
        return 0
    return _total((value.type for value in (*node.values(), *node.results)), sizes)


def _total(types: Iterable[TensorType], sizes: Mapping[str, int]) -> int:
    return sum(evaluate(type.nbytes, sizes) for type in types)


def _static(type: TensorType, sizes: Mapping[str, int]) -> TensorType:
    return TensorType(type.dtype, type.at(sizes))


def _nodes_by_level(graph: Graph) -> tuple[int, ...]:
    counts: list[int] = []
    level = [graph]
    while level:
        counts.append(sum(len(g.nodes) for g in level))
        level = [sub for g in level for sub in g.subplans]
    return tuple(counts)
