"""The table of `planc run --profile`: where the time of one call goes, by node and by op."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType

import planc
from planc.cli.words import table
from planc.lower import Timing

_SHOWN = 40
"""Nodes that are shown: the slowest."""
_UNITS = ((1.0, "s"), (1e-3, "ms"))


@dataclass(frozen=True, slots=True)
class Share:
    """The time of all nodes of one op."""

    op: str
    nodes: int
    runs: int
    seconds: float


def shares(rows: Sequence[Timing]) -> list[Share]:
    """The time by op, the slowest first."""
    groups: dict[str, list[Timing]] = {}
    for row in rows:
        groups.setdefault(row.op, []).append(row)
    made = [Share(op, len(g), sum(r.runs for r in g), sum(r.seconds for r in g)) for op, g in groups.items()]
    return sorted(made, key=lambda share: (-share.seconds, share.op))


def report(plan: planc.Plan, rows: Sequence[Timing]) -> Iterator[RenderableType]:
    """What to print, part by part."""
    total = sum(row.seconds for row in rows)
    yield ""
    yield f"one call of plan {plan.name}, after others that warmed up"
    yield "(what is computed once for all calls has no row)"
    yield ""
    nodes = table(
        ("node", "left", "total"),
        ("runs", "right", ""),
        ("time", "right", _time(total)),
        ("", "right", "100 %"),
    )
    inside = {row.plan for row in rows} != {plan.name}
    for row in rows[:_SHOWN]:
        name = f"{row.node} {row.op.removeprefix('aten.')}"
        where = f"{name}  in {row.plan}" if inside and row.plan != plan.name else name
        nodes.add_row(where, f"{row.runs:,}", _time(row.seconds), _percent(row.seconds, total))
    if len(rows) > _SHOWN:
        rest = rows[_SHOWN:]
        took = sum(row.seconds for row in rest)
        runs = f"{sum(row.runs for row in rest):,}"
        nodes.add_row(f"{len(rest)} others", runs, _time(took), _percent(took, total))
    yield nodes
    yield ""
    ops = table(
        ("op", "left", "total"),
        ("nodes", "right", f"{len(rows):,}"),
        ("runs", "right", ""),
        ("time", "right", _time(total)),
        ("", "right", "100 %"),
    )
    for share in shares(rows):
        counts = f"{share.nodes:,}", f"{share.runs:,}"
        took = _time(share.seconds), _percent(share.seconds, total)
        ops.add_row(share.op.removeprefix("aten."), *counts, *took)
    yield ops
    yield ""


def report_json(rows: Sequence[Timing]) -> dict[str, Any]:
    """The same for machines; seconds."""
    total = sum(row.seconds for row in rows)
    return {
        "seconds": total,
        "nodes": [
            {
                "plan": row.plan,
                "index": row.node,
                "op": row.op,
                "location": row.where or None,
                "runs": row.runs,
                "seconds": row.seconds,
                "share": row.seconds / total,
            }
            for row in rows
        ],
        "ops": [
            {
                "op": share.op,
                "nodes": share.nodes,
                "runs": share.runs,
                "seconds": share.seconds,
                "share": share.seconds / total,
            }
            for share in shares(rows)
        ],
    }


def _time(seconds: float) -> str:
    for unit, name in _UNITS:
        if seconds >= unit:
            return f"{seconds / unit:.2f} {name}"
    return f"{seconds * 1e6:.1f} us"


def _percent(seconds: float, total: float) -> str:
    return f"{100 * seconds / total:.1f} %" if total else ""


__all__ = ["Share", "report", "report_json", "shares"]
