"""What changed between two plans, for someone who approved the first. Compares programs; runs nothing.

Nodes are aligned by what they do, not by number: an inserted node is one change, not one of all below it.
Nothing may hide behind another change: each part is compared whatever the others say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from planc.draw.flow import flow_of
from planc.ir import Attribute, DimVar, Graph, Input, Node, Operand, Output, Value
from planc.ops import Kind, find
from planc.plans import Plan
from planc.text import show
from planc.text.words import quote_name


@dataclass(frozen=True, slots=True)
class Change:
    """One change: ``before`` is None for what was added, ``after`` for what was removed.

    Attributes:
        part: "name", "structure", "dim", "input", "output", "constant", "plan" (a subplan) or "node".
        plan: the subplan that it is in, by names from the outermost; empty for the plan itself.
    """

    part: str
    before: str | None
    after: str | None
    plan: str = ""

    @property
    def kind(self) -> str:
        """ "added", "removed" or "changed"."""
        return "added" if self.before is None else "removed" if self.after is None else "changed"


@dataclass(frozen=True, slots=True)
class Difference:
    """What changed between two plans.

    Attributes:
        changes: in the order of `Change`'s parts; empty exactly when the plans have the same id.
        leaves: what a caller now gets that it did not get before, a sentence each.
        unchanged: how many nodes are as they were.
    """

    changes: tuple[Change, ...]
    leaves: tuple[str, ...]
    unchanged: int

    @property
    def same(self) -> bool:
        return not self.changes

    def of(self, *parts: str) -> list[Change]:
        """The changes of these parts."""
        return [change for change in self.changes if change.part in parts]


def diff(before: Plan, after: Plan) -> Difference:
    """What changed from ``before`` to ``after``. State's values are no part of a plan, and not compared."""
    if before.id == after.id:
        return Difference((), (), before.graph.count_nodes())
    found = _Comparison()
    found.compare(before.graph, after.graph, "")
    found.constants(before.graph, after.graph)
    if not found.changes:
        found.add("structure", "numbering of subplans and values", "the same in another order")
    return Difference(tuple(found.changes), tuple(_leaves(before.graph, after.graph)), found.unchanged)


class _Comparison:
    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.unchanged = 0

    def add(self, part: str, before: str | None, after: str | None, plan: str = "") -> None:
        if before != after:
            self.changes.append(Change(part, before, after, plan))

    def compare(self, a: Graph, b: Graph, plan: str) -> None:
        self.add("name", a.name, b.name, plan)
        self._keyed(
            "dim",
            [(v.name, _dim(v)) for v in a.dims],
            [(v.name, _dim(v)) for v in b.dims],
            plan,
        )
        self._keyed("input", _ports(a.inputs), _ports(b.inputs), plan)
        pairs = self._subplans(a, b, plan)
        matched = self._nodes(a, b, plan)
        self._outputs(a, b, matched, plan)
        if (a.takes, a.gives) != (b.takes, b.gives):
            self.add("structure", "structure of arguments and results", "another structure", plan)
        for x, y in pairs:
            self.compare(x, y, f"{plan}/{x.name}" if plan else x.name)

    def constants(self, a: Graph, b: Graph) -> None:
        have = [{c.digest: str(c.value.type) for g in graph.walk() for c in g.constants} for graph in (a, b)]
        for digest, type in have[0].items():
            if digest not in have[1]:
                self.add("constant", f"sha256:{digest[:16]} {type}", None)
        for digest, type in have[1].items():
            if digest not in have[0]:
                self.add("constant", None, f"sha256:{digest[:16]} {type}")

    def _keyed(
        self, part: str, a: Sequence[tuple[str, str]], b: Sequence[tuple[str, str]], plan: str
    ) -> None:
        """Compare described things that have a key, and the order of those that both have."""
        old, new = dict(a), dict(b)
        for key in dict.fromkeys([*old, *new]):
            self.add(part, old.get(key), new.get(key), plan)
        orders = [[key for key in keys if key in old and key in new] for keys in (old, new)]
        if orders[0] != orders[1]:
            first, second = (", ".join(old[key] for key in order) for order in orders)
            self.add(part, f"order: {first}", f"order: {second}", plan)

    def _subplans(self, a: Graph, b: Graph, plan: str) -> list[tuple[Graph, Graph]]:
        old, new = (dict(zip(_subplan_names(graph), graph.subplans, strict=True)) for graph in (a, b))
        for name in dict.fromkeys([*old, *new]):
            told = [
                f"{name}, nodes: {g.count_nodes()}" if g else None for g in (old.get(name), new.get(name))
            ]
            if None in told:
                self.add("plan", told[0], told[1], plan)
        return [(old[name], new[name]) for name in old if name in new]

    def _nodes(self, a: Graph, b: Graph, plan: str) -> dict[int, str]:
        """Report nodes; returns the values of ``a`` that are values of ``b``, by number."""
        matched = _same_ports(a, b)
        lines = _lines(a), _lines(b)
        there = {value: str(value) for value in _known(b)}
        there |= {value.index: str(value.index) for node in b.nodes for value in node.results}
        for i, j in _aligned(a, b):
            if i is None or j is None:
                old, new = None if i is None else lines[0][i], None if j is None else lines[1][j]
                self.changes.append(Change("node", old, new, plan))
                continue
            x, y = a.nodes[i], b.nodes[j]
            if _call(a, x, matched) == _call(b, y, there):
                self.unchanged += 1
            else:
                self.changes.append(Change("node", lines[0][i], lines[1][j], plan))
            # The op is the same; how many results it has can differ with what it runs.
            matched |= {p.index: str(q.index) for p, q in zip(x.results, y.results, strict=False)}
        return matched

    def _outputs(self, a: Graph, b: Graph, matched: dict[int, str], plan: str) -> None:
        self._keyed("output", _ports(a.outputs), _ports(b.outputs), plan)
        there = {_key(port): port for port in b.outputs}
        for port, (_, told) in zip(a.outputs, _ports(a.outputs), strict=True):
            now = there.get(_key(port))
            if now is not None and matched.get(port.value.index) != str(now.value.index):
                self.add("output", told, f"{told}, which is another value", plan)


def _dim(var: DimVar) -> str:
    equals = "" if var.equals is None else f", == {var.equals}"
    return f"{var.name} in {var.lo}..{var.hi}{equals}"


def _leaves(a: Graph, b: Graph) -> Iterator[str]:
    """What outputs say now that they did not: new ones, other types, and other inputs that flow into them."""
    old = {_key(p): (p, flow) for p, flow in zip(a.outputs, flow_of(a), strict=True)}
    names = {_key(p) for p in a.inputs}
    for port, flow in zip(b.outputs, flow_of(b), strict=True):
        kind = f"new {port.role.value} {port.path}" if port.role.is_state else f"result {port.path}"
        sources = {_key(b.inputs[i]): b.inputs[i].path for i in flow}
        if _key(port) not in old:
            told = ", ".join(sources.values()) or "no input"
            yield f"{kind}: {port.value.type} is new, computed from {told}"
            continue
        was, before = old[_key(port)]
        if was.value.type != port.value.type:
            yield f"{kind}: is {port.value.type}, was {was.value.type}"
        more = [path for key, path in sources.items() if key not in {_key(a.inputs[i]) for i in before}]
        if more:
            fresh = "" if all(_key(p) in names for p in b.inputs if p.path in more) else " (not there before)"
            yield f"{kind}: is now also computed from {', '.join(more)}{fresh}"


def _aligned(a: Graph, b: Graph) -> Iterator[tuple[int | None, int | None]]:
    """Pairs of positions of nodes: those that do the same, then in what is left those of the same op."""
    keys = [_key_of(a, node) for node in a.nodes], [_key_of(b, node) for node in b.nodes]
    for tag, i, k, j, m in SequenceMatcher(None, *keys, autojunk=False).get_opcodes():
        if tag == "equal":
            yield from zip(range(i, k), range(j, m), strict=True)
            continue
        ops = [node.op for node in a.nodes[i:k]], [node.op for node in b.nodes[j:m]]
        for inner, p, q, r, s in SequenceMatcher(None, *ops, autojunk=False).get_opcodes():
            if inner == "equal":
                yield from zip(range(i + p, i + q), range(j + r, j + s), strict=True)
            else:
                yield from ((at, None) for at in range(i + p, i + q))
                yield from ((None, at) for at in range(j + r, j + s))


def _key_of(graph: Graph, node: Node) -> str:
    """What a node does, whatever the numbers of the values that nodes before it made."""
    return _call(graph, node, _known(graph))


def _known(graph: Graph) -> dict[int, str]:
    """What to call the values that are there before any node runs."""
    named = {port.value.index: str(_key(port)) for port in graph.inputs}
    return named | {constant.value.index: constant.digest for constant in graph.constants}


def _call(graph: Graph, node: Node, names: Mapping[int, str]) -> str:
    """A node in a line, with values called by ``names``. Only to compare: people see the text's own lines."""
    definition = find(node.op)
    subplans = {p.name for p in definition.attrs if p.kind is Kind.SUBPLAN} if definition else set[str]()

    below = _subplan_names(graph) if subplans else []

    def operand(value: Operand) -> str:
        if isinstance(value, tuple):
            return f"[{', '.join(map(operand, value))}]"
        return names.get(value.index, "?") if isinstance(value, Value) else repr(value)

    def attribute(name: str, value: Attribute) -> str:
        # By type too: 1, 1.0 and true are equal in Python, and are not the same program.
        return below[value] if name in subplans and isinstance(value, int) else repr(value)

    parts = [operand(value) for value in node.operands]
    parts += [f"{name}={attribute(name, value)}" for name, value in node.attrs]
    return f"{[str(value.type) for value in node.results]} = {node.op}({', '.join(parts)})"


def _same_ports(a: Graph, b: Graph) -> dict[int, str]:
    """The inputs and constants of ``a`` that ``b`` has too, by number."""
    there = {name: index for index, name in _known(b).items()}
    return {index: str(there[name]) for index, name in _known(a).items() if name in there}


def _lines(graph: Graph) -> list[str]:
    """Each node's line in the plan's own text."""
    return [line.strip() for line in show(graph).splitlines()[-len(graph.nodes) - 2 : -2]]


def _ports(ports: Sequence[Input] | Sequence[Output]) -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []
    for port in ports:
        word = f"{port.role.value} " if port.role.is_state else ""
        named = "" if port.name == port.path else f", named {port.name}"
        out.append((str(_key(port)), f"{word}{port.path}: {port.value.type}{named}"))
    return out


def _key(port: Input | Output) -> tuple[str, str]:
    return port.role.value, port.path


def _subplan_names(graph: Graph) -> list[str]:
    """A name for each subplan, of which no two are equal: several may be called the same."""
    seen: Counter[str] = Counter()
    out: list[str] = []
    for sub in graph.subplans:
        seen[sub.name] += 1
        out.append(f"{quote_name(sub.name)}#{seen[sub.name]}" if seen[sub.name] > 1 else quote_name(sub.name))
    return out


__all__ = ["Change", "Difference", "diff"]
