"""A plan as one HTML page that needs nothing else, and in short as a notebook's cell. See page.html."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from string import Template

from planc.cost import Cost, NodeCost
from planc.draw.drawing import private_outputs, svg
from planc.draw.figures import decimal, size
from planc.draw.marks import cut, safe
from planc.draw.style import page_style
from planc.ir import Graph, Input, Output, Role
from planc.ir.dims import evaluate
from planc.ir.facts import conditions

_ROLES = {
    Role.ARGUMENT: "argument",
    Role.PARAMETER: "parameter",
    Role.BUFFER: "buffer",
    Role.OPTIMIZER: "optimizer state",
    Role.KEY: "random key",
}
_DRAWN_IN_A_CELL = 120
"""A notebook keeps every cell's output in its file: larger plans are drawn in files of their own."""
_LISTED_IN_A_CELL = 12


@dataclass(frozen=True, slots=True)
class Sized:
    """What a plan costs at some sizes of its dims.

    Attributes:
        cost: the figures.
        dims: the size of every dim.
        note: what people should know of these sizes, such as that they were assumed.
    """

    cost: Cost
    dims: Mapping[str, int]
    note: str = ""


def page(graph: Graph, plan_id: str, text: str, sized: Sized, private: Collection[str] = ()) -> str:
    """The page of a plan.

    Args:
        graph: the plan.
        plan_id: its id.
        text: its text.
        sized: its cost, at sizes that the page names.
        private: paths of inputs that are private, as in `planc.draw.svg`.

    Raises:
        InputError: ``private`` has a path that is no input's.
    """
    tainted = private_outputs(graph, private)
    secret = {port.value.index for port in graph.inputs if port.path in private}
    at = ", ".join(f"{name}={number}" for name, number in sized.dims.items())
    sizes = f"One run at {at}" if at else "Every run"
    template = Template(files("planc.draw").joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(
        name=safe(graph.name),
        style=page_style(),
        plan_id=safe(plan_id),
        facts="\n".join(_facts(graph, sized.cost)),
        sizes=safe(f"{sizes} ({sized.note})" if sized.note else sizes),
        drawing=svg(graph, private),
        inputs="\n".join(_rows(graph.inputs, sized.dims, secret, "private")),
        outputs="\n".join(_rows(graph.outputs, sized.dims, tainted, "from private data")),
        work="\n".join(_work(sized.cost.rows)),
        nodes=_count(graph.count_nodes(), "node"),
        text="\n".join(safe(line) for line in text.split("\n")),
    )


def cell(graph: Graph, plan_id: str, text: str) -> str:
    """A plan as a notebook shows it: a line, its arguments and results, and the rest to unfold."""
    ports = [("takes", graph.arguments()), ("gives", graph.results()), ("state", graph.state())]
    out = [
        f"<div><strong>plan {safe(cut(graph.name, 60))}</strong> · {_count(graph.count_nodes(), 'node')} · "
        f"id <code>{safe(plan_id[:12])}</code>"
    ]
    for word, group in ports:
        shown = [f"<code>{safe(p.path)}: {safe(str(p.value.type))}</code>" for p in group[:_LISTED_IN_A_CELL]]
        more = [f"and {len(group) - len(shown)} more"] if len(group) > len(shown) else []
        if group:
            out.append(f"<div>{word} {', '.join([*shown, *more])}</div>")
    if graph.count_nodes() <= _DRAWN_IN_A_CELL:
        drawing = f'<div style="overflow-x: auto">{svg(graph)}</div>'
        out.append(f"<details><summary>drawing</summary>{drawing}</details>")
        lines = "\n".join(safe(line) for line in text.split("\n"))
        out.append(f'<details><summary>text</summary><pre style="overflow-x: auto">{lines}</pre></details>')
    return "\n".join([*out, "</div>"])


def _facts(graph: Graph, cost: Cost) -> Iterator[str]:
    facts = [
        ("nodes", f"{graph.count_nodes():,}"),
        ("FLOPs", decimal(cost.flops)),
        ("peak memory", size(cost.peak_bytes)),
        ("arguments", size(cost.argument_bytes)),
        ("results", size(cost.result_bytes)),
        ("state", size(cost.state_bytes)),
    ]
    if demanded := conditions(graph.dims):
        facts.append(("dims", safe(", ".join(demanded))))
    for name, value in facts:
        yield f"<div><dt>{name}</dt><dd>{value}</dd></div>"


def _rows(
    ports: Sequence[Input] | Sequence[Output], dims: Mapping[str, int], secret: Collection[int], mark: str
) -> Iterator[str]:
    for port in ports:
        marked = f' <span class="private">{mark}</span>' if port.value.index in secret else ""
        role = ("new " if isinstance(port, Output) and port.role.is_state else "") + _ROLES[port.role]
        if isinstance(port, Output) and not port.role.is_state:
            role = "result"
        number = size(evaluate(port.value.type.nbytes, dims))
        kind = f"<code>{safe(str(port.value.type))}</code>"
        name = f"<code>{safe(port.path)}</code>{marked}"
        yield f"<tr><td>{name}</td><td>{role}</td><td>{kind}</td><td>{number}</td></tr>"
    if not ports:
        yield '<tr><td colspan="4">none</td></tr>'


@dataclass(frozen=True, slots=True)
class Share:
    """What all nodes of one op take of a plan's cost; ``times`` is how often they run, together."""

    op: str
    nodes: int
    times: int
    flops: int
    bytes_moved: int


def by_op(rows: Sequence[NodeCost]) -> list[Share]:
    """The cost by op, the costliest first.

    What runs a subplan is left out, since its nodes have rows themselves: the shares add up to the total.
    """
    with_rows = {i for i, row in enumerate(rows[:-1]) if rows[i + 1].level > row.level}
    groups: dict[str, list[NodeCost]] = {}
    for i, row in enumerate(rows):
        if i not in with_rows:
            groups.setdefault(row.op, []).append(row)
    shares = [
        Share(op, len(g), sum(r.times for r in g), sum(r.flops for r in g), sum(r.bytes_moved for r in g))
        for op, g in groups.items()
    ]
    return sorted(shares, key=lambda share: (-share.flops, -share.bytes_moved, share.op))


def _work(rows: Sequence[NodeCost]) -> Iterator[str]:
    for share in by_op(rows):
        figures = f"{share.nodes:,}", f"{share.times:,}", decimal(share.flops), size(share.bytes_moved)
        cells = "".join(f"<td>{figure}</td>" for figure in figures)
        yield f"<tr><td><code>{safe(share.op)}</code></td>{cells}</tr>"
    if not rows:
        yield '<tr><td colspan="5">none</td></tr>'


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'s' if number != 1 else ''}"


__all__ = ["Share", "Sized", "by_op", "cell", "page"]
