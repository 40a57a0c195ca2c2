"""The table of `planc cost`: what each node of a plan costs at given sizes, and all of them together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import JustifyMethod, RenderableType
from rich.table import Table

import planc
from planc.cli.sizes import Sizes
from planc.cli.summary import cost_json
from planc.cli.words import decimal, size, table
from planc.cost import Cost, NodeCost
from planc.draw import by_op

_MANY = 40
"""More nodes than one sees at once: then the cost is told by op too."""


def report(plan: planc.Plan, sizes: Sizes, cost: Cost) -> Iterator[RenderableType]:
    """What to print, part by part."""
    at = f" at {sizes}" if plan.dims else ""
    yield f"one run of plan {plan.name}{at}"
    if sizes.note:
        yield f"({sizes.note})"
    yield ""
    # Without loops all run once: the column would say nothing, and names need its room.
    loops = any(row.times != 1 for row in cost.rows)
    counts: list[tuple[str, JustifyMethod, str]] = [("times", "right", "")] if loops else []
    rows = table(("node", "left", "total"), ("result", "left", ""), *counts, *_figures(cost))
    for row in cost.rows:
        name = f"{'  ' * row.level}{row.index} {row.op.removeprefix('aten.')}"
        times = [f"{row.times:,}"] if loops else []
        rows.add_row(name, _result(row), *times, decimal(row.flops), size(row.bytes_moved))
    yield rows
    yield ""
    if len(cost.rows) > _MANY:
        yield _by_op(cost)
        yield ""
    yield _totals(cost)


def report_json(plan: planc.Plan, sizes: Sizes, cost: Cost) -> dict[str, Any]:
    """The same for machines. Rows of level 0 add up to the totals."""
    return {
        "plan": plan.name,
        "id": plan.id,
        **cost_json(cost, sizes),
        "nodes": [
            {
                "level": row.level,
                "plan": row.plan,
                "index": row.index,
                "op": row.op,
                "types": [str(type) for type in row.types],
                "times": row.times,
                "flops": row.flops,
                "bytes_moved": row.bytes_moved,
                "location": None if row.loc is None else str(row.loc),
            }
            for row in cost.rows
        ],
    }


def _by_op(cost: Cost) -> Table:
    """The same by op: where the work is in a plan of many nodes."""
    rows = table(("op", "left", "total"), ("nodes", "right", ""), ("times", "right", ""), *_figures(cost))
    for share in by_op(cost.rows):
        counts = f"{share.nodes:,}", f"{share.times:,}"
        name = share.op.removeprefix("aten.")
        rows.add_row(name, *counts, decimal(share.flops), size(share.bytes_moved))
    return rows


def _figures(cost: Cost) -> tuple[tuple[str, JustifyMethod, str], tuple[str, JustifyMethod, str]]:
    """The columns of figures, with the plan's totals below."""
    return ("FLOPs", "right", decimal(cost.flops)), ("moved", "right", size(cost.bytes_moved))


def _result(row: NodeCost) -> str:
    first = str(row.types[0]) if row.types else "none"
    return f"{first} +{len(row.types) - 1}" if len(row.types) > 1 else first


def _totals(cost: Cost) -> str:
    figures = (
        ("peak memory", cost.peak_bytes),
        ("arguments", cost.argument_bytes),
        ("state", cost.state_bytes),
        ("constants", cost.constant_bytes),
        ("results", cost.result_bytes),
        ("state replaced", cost.update_bytes),
    )
    lines = [f"{name:<16}{size(number):>10}" for name, number in figures if number or name == "peak memory"]
    lines.append(f"{'messages':<16}{cost.messages:>6}")
    return "\n".join(lines)


__all__ = ["report", "report_json"]
