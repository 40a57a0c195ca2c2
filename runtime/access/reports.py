"""What a worker's owner reads at the command line: status, objects, plans, as lines and as JSON.

Names, tags and descriptions come from clients: they are shown in ASCII with all else escaped, so that none
can move the cursor or look like another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from planc.draw.figures import decimal, size
from planc.ir import TensorType
from planc.text.suggest import count_of
from runtime.messages import ApprovalInfo, OwnerObject, OwnerPlan, StatusReport
from runtime.owner import Waiting

_WIDTH = 60


def plain(text: str) -> str:
    """A client's text as one may print it."""
    shown = ascii(text)[1:-1]
    return shown if len(shown) <= _WIDTH else f"{shown[:_WIDTH]}..."


def moment(seconds: float) -> str:
    """A time as people read it, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def status_lines(status: StatusReport) -> Iterator[str]:
    """How a worker is."""
    yield f"worker {plain(status.worker)} on {status.device}, up for {_duration(status.uptime)}"
    yield f"  objects  {status.objects:,}, {size(status.bytes)}"
    yield f"  plans    {status.plans:,}, {size(status.plan_bytes)}"
    yield f"  runs     {status.running:,} running; {count_of(status.pending, 'plan')} waiting for a decision"
    if status.audit is not None:
        yield f"  audit    line {status.audit[0]:,}, hash {status.audit[1]}"
    yield f"  clients  {len(status.clients)}"
    rows = [
        (
            plain(each.name),
            count_of(each.sessions, "session"),
            f"{decimal(each.requests)} requests, {each.refused:,} refused",
            size(each.bytes),
            f"{each.seconds:,.1f} s",
        )
        for each in status.clients
    ]
    yield from _table(rows, "    ")


def status_json(status: StatusReport) -> dict[str, Any]:
    """The same for machines; sizes in bytes, times in seconds."""
    fields = {name: getattr(status, name) for name in status.__struct_fields__}
    clients = [{name: getattr(c, name) for name in c.__struct_fields__} for c in status.clients]
    audit = None if status.audit is None else {"line": status.audit[0], "hash": status.audit[1]}
    return {**fields, "clients": clients, "audit": audit}


def object_lines(objects: Sequence[OwnerObject]) -> Iterator[str]:
    """All objects, one a line."""
    yield from _table([_object_row(each) for each in objects], "")
    total = sum(each.bytes for each in objects)
    yield f"{count_of(len(objects), 'object')}, {size(total)} of elements"


def object_json(each: OwnerObject) -> dict[str, Any]:
    """One object for machines."""
    return {
        "id": each.id,
        "owner": each.owner,
        "type": object_type(each),
        "bytes": each.bytes,
        "tags": list(each.tags),
        "description": each.description,
        "private": each.private,
        "derived": each.derived,
        "allowed": list(each.allowed),
    }


def object_type(each: OwnerObject) -> str:
    """What an object is, in a word."""
    if each.dtype is None:
        at = each.pointer
        return "pointer" if at is None else f"pointer to {at.id} at {plain(at.worker)}"
    return str(TensorType(each.dtype, each.shape))


def plan_lines(plans: Sequence[OwnerPlan]) -> Iterator[str]:
    """All plans, and what was decided about them."""
    for plan in plans:
        name = plain(plan.name) or "(not installed)"
        who = ", ".join(plain(client) for client in plan.clients) or "nobody"
        yield f"{plan.plan_id}"
        yield f"  {name}: {count_of(plan.nodes, 'node')}, {size(plan.bytes)}, installed by {who}"
        for approval in plan.approvals:
            yield f"  approved {scope(approval)}"
        if plan.denied is not None:
            yield f"  denied{f': {plain(plan.denied)}' if plan.denied else ''}"
    yield count_of(len(plans), "plan")


def plan_json(plan: OwnerPlan) -> dict[str, Any]:
    """One plan for machines."""
    return {
        "id": plan.plan_id,
        "name": plan.name,
        "tags": list(plan.tags),
        "description": plan.description,
        "clients": list(plan.clients),
        "nodes": plan.nodes,
        "bytes": plan.bytes,
        "approvals": [approval_json(each) for each in plan.approvals],
        "denied": plan.denied,
    }


def approval_json(approval: ApprovalInfo) -> dict[str, Any]:
    """One approval for machines; None stands for any, or for no end."""
    return {
        "clients": None if approval.clients is None else list(approval.clients),
        "inputs": {path: list(names) for path, names in approval.inputs.items()},
        "runs": approval.runs,
        "expires": approval.expires,
    }


def scope(approval: ApprovalInfo) -> str:
    """How far an approval goes, in words."""
    who = "anybody" if approval.clients is None else ", ".join(plain(client) for client in approval.clients)
    data = (
        "; ".join(
            f"{plain(path)} = {' or '.join(map(plain, names))}" for path, names in approval.inputs.items()
        )
        or "any private originals"
    )
    runs = "any number of runs" if approval.runs is None else count_of(approval.runs, "run")
    until = "" if approval.expires is None else f", until {moment(approval.expires)}"
    return f"for {who}, on {data}, {runs}{until}"


def pending_lines(waiting: Sequence[Waiting]) -> Iterator[str]:
    """The plans that wait, and for whom."""
    for each in waiting:
        yield each.plan.id
        nodes = count_of(each.plan.graph.count_nodes(), "node")
        about = f": {plain(each.description)}" if each.description else ""
        yield f"  {plain(each.plan.name)}, {nodes}{about}"
        for asked in each.asked:
            times = "" if asked.count == 1 else f", {asked.count} times"
            yield f"  asked for by {plain(asked.client)} at {moment(asked.last)}{times}"
    if waiting:
        yield f"{count_of(len(waiting), 'plan')} waiting; `planc worker approve ID` shows one and asks"
    else:
        yield "no plan is waiting"


def pending_json(each: Waiting) -> dict[str, Any]:
    """One plan that waits, for machines."""
    return {
        "id": each.plan.id,
        "name": each.plan.name,
        "description": each.description,
        "text": each.plan.text,
        "asked": [
            {
                "client": asked.client,
                "inputs": asked.inputs,
                "leaves": list(asked.leaves),
                "first": asked.first,
                "last": asked.last,
                "count": asked.count,
            }
            for asked in each.asked
        ],
    }


def _object_row(each: OwnerObject) -> tuple[str, ...]:
    privacy = "private, derived" if each.derived else "private" if each.private else "public"
    tags = " ".join(plain(tag) for tag in each.tags)
    return str(each.id), plain(each.owner), object_type(each), size(each.bytes), privacy, tags


def _table(rows: Iterable[Sequence[str]], indent: str) -> Iterator[str]:
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        yield f"{indent}{'  '.join(cells)}".rstrip()


def _duration(seconds: float) -> str:
    for unit, each in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= each:
            return f"{seconds / each:.1f} {unit}"
    return f"{seconds:.0f} s"
