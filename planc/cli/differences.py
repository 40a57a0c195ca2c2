"""What `planc diff` prints: changes part by part, what now leaves, and costs side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import planc
from planc.cli.sizes import Sizes
from planc.cli.summary import cost_json
from planc.cli.words import decimal, size
from planc.cost import Cost
from planc.diff import Change, Difference
from planc.draw.marks import clean
from planc.text.suggest import count_of

_SIGNS = {"added": "+", "removed": "-"}
_PARTS = (
    ("plan", ("name", "structure")),
    ("dims", ("dim",)),
    ("inputs", ("input",)),
    ("outputs", ("output",)),
    ("constants", ("constant",)),
    ("subplans", ("plan",)),
)

Side = tuple[str, planc.Plan, Sizes, Cost]
"""Where a plan came from, the plan, and what it costs at which sizes."""


def lines(a: Side, b: Side, found: Difference) -> Iterator[str]:
    """The difference for people."""
    for sign, (source, plan, _, _) in (("-", a), ("+", b)):
        nodes = count_of(plan.graph.count_nodes(), "node")
        yield f"{sign} {source}: plan {clean(plan.name)}, {nodes}, id {plan.id[:12]}"
    if found.same:
        yield "the same plan"
        return
    yield ""
    yield "what now leaves or is kept that was not"
    yield from (f"  ! {clean(sentence)}" for sentence in found.leaves)
    if not found.leaves:
        yield "  nothing"
    for head, parts in _PARTS:
        changes = found.of(*parts)
        if changes:
            yield ""
            yield head
            yield from _changes(changes)
    nodes = found.of("node")
    yield ""
    counts = [
        f"{sum(change.kind == kind for change in nodes)} {kind}" for kind in ("added", "removed", "changed")
    ]
    yield f"nodes: {', '.join(counts)}, {found.unchanged} as before"
    yield from _changes(nodes)
    yield ""
    yield from _costs(a, b)


def report_json(a: Side, b: Side, found: Difference) -> dict[str, Any]:
    """The difference for machines."""
    sides = {
        key: {"source": source, "plan": plan.name, "id": plan.id, "cost": cost_json(cost, sizes)}
        for key, (source, plan, sizes, cost) in (("before", a), ("after", b))
    }
    changes = [
        {"part": c.part, "kind": c.kind, "in": c.plan, "before": c.before, "after": c.after}
        for c in found.changes
    ]
    return {
        "same": found.same,
        **sides,
        "leaves": list(found.leaves),
        "changes": changes,
        "nodes_unchanged": found.unchanged,
    }


def _changes(changes: Sequence[Change]) -> Iterator[str]:
    for change in changes:
        where = f"[{clean(change.plan)}] " if change.plan else ""
        if change.before is not None:
            yield f"  {_SIGNS.get(change.kind, '~')} {where}{clean(change.before)}"
        if change.after is not None:
            yield f"  {_SIGNS.get(change.kind, '>')} {where}{clean(change.after)}"


def _costs(a: Side, b: Side) -> Iterator[str]:
    (_, _, sizes, old), (_, _, other, new) = a, b
    at = str(sizes) if sizes.dims == other.dims else " and ".join(str(s) or "no dims" for s in (sizes, other))
    yield f"{'cost of a run':<20}{'before':>12}{'after':>12}"
    if at:
        yield f"  (at {at})"
    rows = [
        ("FLOPs", decimal, old.flops, new.flops),
        ("read and written", size, old.bytes_moved, new.bytes_moved),
        ("peak memory", size, old.peak_bytes, new.peak_bytes),
        ("arguments", size, old.argument_bytes, new.argument_bytes),
        ("state", size, old.state_bytes, new.state_bytes),
        ("results", size, old.result_bytes, new.result_bytes),
    ]
    for name, shown, before, after in rows:
        more = f"  {after / before:.2f}×" if before and before != after else ""
        yield f"  {name:<18}{shown(before):>12}{shown(after):>12}{more}"


__all__ = ["Side", "lines", "report_json"]
