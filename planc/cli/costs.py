"""The table of `planc cost`: what each node of a plan costs at given sizes, and all of them together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType

import planc
from planc.cli.sizes import Sizes
from planc.cli.summary import cost_json
from planc.cli.words import decimal, size, table
from planc.cost import Cost, NodeCost


def report(plan: planc.Plan, sizes: Sizes, cost: Cost) -> Iterator[RenderableType]:
    """What to print, part by part."""
    at = f" at {sizes}" if plan.dims else ""
    yield f"one run of plan {plan.name}{at}"
    if sizes.note:
        yield f"({sizes.note})"
    yield ""
    rows = table(
        ("node", "left", "total"),
        ("result", "left", ""),
        ("times", "right", ""),
        ("FLOPs", "right", decimal(cost.flops)),
        ("moved", "right", size(cost.bytes_moved)),
    )
    for row in cost.rows:
        name = f"{'  ' * row.level}{row.index} {row.op}"
        figures = f"{row.times:,}", decimal(row.flops), size(row.bytes_moved)
        rows.add_row(name, _result(row), *figures)
    yield rows
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
    return "\n".join(lines)


__all__ = ["report", "report_json"]
