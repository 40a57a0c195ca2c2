"""A plan as a drawing in the DOT language of Graphviz. Makes text only: to draw it, ``dot -Tsvg``."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from planc.draw.drawing import private_outputs
from planc.ir import Graph, Input, Output, Role, Value
from planc.ir.facts import relations
from planc.ops import Kind, find

_FILL = {
    Role.ARGUMENT: "#cfe8ff",
    Role.PARAMETER: "#ffe9c7",
    Role.BUFFER: "#f4f1de",
    Role.OPTIMIZER: "#e7dcff",
    Role.KEY: "#ffd6e0",
}


def dot(graph: Graph, private: Collection[str] = ()) -> str:
    """The drawing: inputs coloured by role, nodes with the types of their results, a box for each subplan.

    Args:
        graph: the plan.
        private: paths of inputs that are private, as in `planc.draw.svg`.

    Raises:
        InputError: ``private`` has a path that is no input's.
    """
    tainted = private_outputs(graph, private)
    secret = tainted | {port.value.index for port in graph.inputs if port.path in private}
    lines = [
        f"digraph {_quoted(graph.name)} {{",
        '  node [shape=box, style="rounded,filled", fillcolor=white, fontname="Helvetica", fontsize=10];',
        '  edge [fontname="Helvetica", fontsize=8];',
        *([f"  label={_quoted(f'where {related}')};"] if (related := _related(graph)) else []),
        *_graph(graph, "g", "  ", secret),
        "}",
    ]
    return "\n".join(lines) + "\n"


def _graph(graph: Graph, key: str, indent: str, secret: Collection[int] = ()) -> Iterator[str]:
    """One graph's lines. ``key`` begins all its identifiers: names repeat between graphs, numbers do too."""
    for i, sub in enumerate(graph.subplans):
        yield f"{indent}subgraph cluster_{key}_{i} {{"
        related = _related(sub)
        yield f"{indent}  label={_quoted(f'plan {sub.name}' + (f' where {related}' if related else ''))};"
        yield from _graph(sub, f"{key}_{i}", indent + "  ")
        yield f"{indent}}}"
    origin: dict[int, str] = {}
    for port in graph.inputs:
        origin[port.value.index] = made = f"{key}_v{port.value.index}"
        word = "" if port.role is Role.ARGUMENT else f"{port.role.value} "
        label = _label(f"{word}{port.path}", str(port.value.type))
        look = f"shape=ellipse, fillcolor={_quoted(_FILL[port.role])}{_mark(port, secret)}"
        yield f"{indent}{made} [label={label}, {look}];"
    for constant in graph.constants:
        origin[constant.value.index] = made = f"{key}_v{constant.value.index}"
        label = _label(f"constant {constant.digest[:8]}", str(constant.value.type))
        yield f'{indent}{made} [label={label}, shape=note, fillcolor="#eeeeee"];'
    for i, node in enumerate(graph.nodes):
        made = f"{key}_n{i}"
        origin.update({value.index: made for value in node.results})
        yield f"{indent}{made} [label={_label(_title(graph, i), *_types(node.results))}];"
        for value in dict.fromkeys(node.values()):
            yield f"{indent}{origin[value.index]} -> {made};"
    for i, port in enumerate(graph.outputs):
        made = f"{key}_o{i}"
        word = "result" if port.role is Role.ARGUMENT else f"new {port.role.value}"
        label = _label(f"{word} {port.path}", str(port.value.type))
        look = f"shape=ellipse, fillcolor={_quoted(_FILL[port.role])}, peripheries=2{_mark(port, secret)}"
        yield f"{indent}{made} [label={label}, {look}];"
        yield f"{indent}{origin[port.value.index]} -> {made};"


def _related(graph: Graph) -> str:
    return ", ".join(f"{left} == {right}" for left, right in relations(graph))


def _title(graph: Graph, index: int) -> str:
    """A node's op, with the name of the plan that it runs if it runs one."""
    node = graph.nodes[index]
    definition = find(node.op)
    subplans = {p.name for p in definition.attrs if p.kind is Kind.SUBPLAN} if definition else set[str]()
    runs = [graph.subplans[v].name for name, v in node.attrs if name in subplans and isinstance(v, int)]
    return " ".join([node.op, *runs])


def _mark(port: Input | Output, secret: Collection[int]) -> str:
    return ', color="#c2272d", penwidth=2' if port.value.index in secret else ""


def _types(values: tuple[Value, ...], most: int = 3) -> list[str]:
    shown = [str(value.type) for value in values[:most]]
    return [*shown, f"and {len(values) - most} more"] if len(values) > most else shown


def _label(*lines: str) -> str:
    return '"' + "\\n".join(_escaped(line) for line in lines) + '"'


def _quoted(text: str) -> str:
    return f'"{_escaped(text)}"'


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")


__all__ = ["dot"]
