"""What the audit log says of a request: who, what, on which data, what left, how it ended. Never elements.

Single operations are many and release nothing by themselves, so a client's are counted, and written as one
entry before its next other one: before anything can leave.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from planc.ir import type_of
from runtime.audit.log import AuditLog
from runtime.audit.touched import Left
from runtime.call import Call
from runtime.errors import AuditFailed
from runtime.identity import Identity, Role
from runtime.messages import (
    Apply,
    Approve,
    Backward,
    Clear,
    Cohort,
    Copy,
    Deny,
    FetchPlan,
    Free,
    Get,
    Grad,
    Install,
    List,
    OwnerObjects,
    OwnerPlans,
    Pending,
    Plans,
    Put,
    Request,
    RequireGrad,
    Run,
    Search,
    Status,
    Step,
    Steps,
    Transfer,
    Uninstall,
    ZeroGrad,
)
from runtime.store import Stored

_logger = logging.getLogger(__name__)

LOGGED: frozenset[type] = frozenset(
    {Put, Get, Free, Search, List, Clear, Transfer, Install, Run, Cohort, FetchPlan, Uninstall, Approve, Deny}
)
"""One entry each."""
COUNTED: frozenset[type] = frozenset({Apply, Backward, Grad, ZeroGrad, RequireGrad, Step, Steps, Copy})
"""Counted, unless refused or the results of an approved plan are among them."""
UNLOGGED: frozenset[type] = frozenset({Plans, Status, OwnerObjects, OwnerPlans, Pending})
"""They show names and figures only. Refused ones are logged all the same."""

REFUSALS = frozenset({"permission-denied", "approval-needed", "quota-exceeded"})
"""The kinds of errors by which a policy refuses something."""
_OBJECTS = 32
_LEFT = 64
_TAGS = 8
_NAME = 128
_COUNTS = 1000
"""Operations in one entry."""
_SECONDS = 10.0
"""How old a count may be when another operation comes."""
_CLIENTS = 256

_Who = tuple[str, str]


@dataclass(slots=True)
class _Count:
    """The single operations of a client that are not written yet."""

    since: float
    kinds: dict[str, int] = field(default_factory=dict[str, int])
    failed: int = 0
    seconds: float = 0.0
    data: dict[int, Stored] = field(default_factory=dict[int, Stored])

    @property
    def number(self) -> int:
        return sum(self.kinds.values())


class Audit:
    """What a worker tells its audit log. Not thread-safe by itself: the worker has the lock."""

    def __init__(self, log: AuditLog) -> None:
        self.log = log
        self._counts: OrderedDict[_Who, _Count] = OrderedDict()

    def record(self, call: Call, request: Request, result: str, seconds: float) -> None:
        """Log a request that was handled, before its reply leaves.

        Args:
            call: the request as it was handled.
            request: its message.
            result: "ok", or the kind of the error.
            seconds: how long it took.

        Raises:
            AuditFailed: it is not logged.
        """
        kind, touched = type(request.body), call.touched
        refused = result in REFUSALS
        if kind in UNLOGGED and not refused:
            return
        if kind in COUNTED and not (refused or touched.released or touched.left):
            self._count(call, request, result, seconds)
            return
        entry = self._entry(call, request)
        entry["result"] = result
        entry["seconds"] = round(seconds, 6)
        leaves = result == "ok" and bool(touched.left or touched.previews or touched.released)
        if result != "ok":
            entry.pop("left", None)  # what stood ready stayed here
        self._flush(_who(call))
        self.log.append(entry, leaves=leaves)

    def leaving(self, call: Call, request: Request) -> None:
        """Log that something is about to leave otherwise than by a reply; `record` says how it went.

        Raises:
            AuditFailed: it is not logged, and must not leave.
        """
        self._flush(_who(call))
        self.log.append({**self._entry(call, request), "result": "started"}, leaves=True)

    def decided(self, kind: str, worker: str, plan_id: str) -> None:
        """Log what the owner decided in the worker's own process.

        Raises:
            AuditFailed: it is not logged.
        """
        entry = {"kind": kind, "who": worker, "role": Role.OWNER.value, "plan": plan_id, "result": "ok"}
        self.log.append(entry, leaves=True)

    def undone(self, request: Request, identity: Identity) -> None:
        """Log that a request which stands here as done was taken back: it could not be kept."""
        entry = {"kind": "undone", "who": identity.name, "role": identity.role.value}
        try:
            self.log.append({**entry, "request": [request.session, request.request_id]})
        except AuditFailed as error:
            _logger.error("what was taken back is not in the audit log: %s", error)

    def close(self) -> None:
        """Write all that is only counted so far, and close the log."""
        try:
            for who in list(self._counts):
                self._flush(who)
        except AuditFailed as error:
            _logger.error("the last operations are not in the audit log: %s", error)
        self.log.close()

    def _entry(self, call: Call, request: Request) -> dict[str, Any]:
        touched = call.touched
        entry: dict[str, Any] = {
            "kind": _kind(request),
            "who": call.client,
            "role": call.identity.role.value,
            "request": [request.session, request.request_id],
        }
        plan = touched.plan_id or getattr(request.body, "plan_id", "")
        if plan:
            entry["plan"] = plan[:64]
        if isinstance(request.body, Approve):
            entry["approval"] = _scope(request.body)
        if request.release:
            entry["released"] = len(request.release)
        entry.update(_data(touched.data, call))
        entry.update(_left(touched.left))
        if touched.previews:
            entry["previews"] = touched.previews
        if touched.released:
            entry["approved"] = True
        return entry

    def _count(self, call: Call, request: Request, result: str, seconds: float) -> None:
        who = _who(call)
        count = self._counts.get(who)
        if count is None:
            while len(self._counts) >= _CLIENTS:
                self._flush(next(iter(self._counts)))
            count = self._counts[who] = _Count(time.time())
        kind = _kind(request)
        count.kinds[kind] = count.kinds.get(kind, 0) + 1
        count.failed += result != "ok"
        count.seconds += seconds
        for id, stored in call.touched.data.items():
            if _notable(stored, call.client):
                count.data.setdefault(id, stored)
        if count.number >= _COUNTS or len(count.data) >= _OBJECTS or time.time() - count.since > _SECONDS:
            self._flush(who)

    def _flush(self, who: _Who) -> None:
        count = self._counts.get(who)
        if count is None:
            return
        data = [_described(id, stored) for id, stored in count.data.items()]
        self.log.append(
            {
                "kind": "operations",
                "who": who[0],
                "role": who[1],
                "counts": count.kinds,
                "failed": count.failed,
                "seconds": round(count.seconds, 6),
                "data": data[:_OBJECTS],
                **({"more": len(data) - _OBJECTS} if len(data) > _OBJECTS else {}),
            }
        )
        del self._counts[who]  # only now: what could not be written is written later


def _who(call: Call) -> _Who:
    return call.client, call.identity.role.value


def _kind(request: Request) -> str:
    tag = type(request.body).__struct_config__.tag
    assert isinstance(tag, str)
    return tag


def _scope(body: Approve) -> dict[str, Any]:
    """How far an approval goes; nothing and None stand for any."""
    inputs = list(body.inputs.items())[:_OBJECTS]
    return {
        "clients": [name[:_NAME] for name in body.clients],
        "inputs": {path[:_NAME]: [name[:_NAME] for name in names[:_TAGS]] for path, names in inputs},
        "runs": body.runs,
        "expires": body.expires,
    }


def _notable(stored: Stored, client: str) -> bool:
    return stored.secrecy.private or stored.owner != client


def _data(touched: Mapping[int, Stored], call: Call) -> dict[str, Any]:
    """The data of others and private data one by one; how much else of the client's own there was."""
    notable = {id: stored for id, stored in touched.items() if _notable(stored, call.client)}
    out: dict[str, Any] = {}
    if notable:
        out["data"] = [_described(id, notable[id]) for id in list(notable)[:_OBJECTS]]
    if len(notable) > _OBJECTS:
        out["more"] = len(notable) - _OBJECTS
    if len(touched) > len(notable):
        out["own"] = len(touched) - len(notable)
    return out


def _described(id: int, stored: Stored) -> dict[str, Any]:
    out: dict[str, Any] = {"id": id, "owner": stored.owner[:_NAME], "private": stored.secrecy.private}
    if stored.tags:
        out["tags"] = [tag[:_NAME] for tag in stored.tags[:_TAGS]]
    return out


def _left(left: list[Left]) -> dict[str, Any]:
    if not left:
        return {}
    out: dict[str, Any] = {
        "left": [_leaving(each) for each in left[:_LEFT]],
        "bytes": sum(each.tensor.nbytes for each in left),
    }
    if len(left) > _LEFT:
        out["left_more"] = len(left) - _LEFT
    return out


def _leaving(left: Left) -> dict[str, Any]:
    out: dict[str, Any] = {
        "name": left.name[:_NAME],
        "type": str(type_of(left.tensor)),
        "bytes": left.tensor.nbytes,
    }
    if left.to:
        out["to"] = left.to
    return out


__all__ = ["COUNTED", "LOGGED", "REFUSALS", "UNLOGGED", "Audit"]
