"""The handle of a worker's owner: how the worker is, what it holds, and what its plans may do.

It needs a connection whose other end knows the caller as the owner; it opens none itself, except to a worker
of the same process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from planc.codec import decode, plan_id
from planc.errors import DecodeError
from planc.ir.program import Program
from planc.plans import Plan
from runtime.channels.base import Connection
from runtime.errors import ConnectionLost
from runtime.identity import OWNER_NAME, Identity, Role
from runtime.messages import (
    Answer,
    Approve,
    AskedInfo,
    Body,
    Deny,
    FetchPlan,
    OwnerObject,
    OwnerObjects,
    OwnerObjectsFound,
    OwnerPlan,
    OwnerPlans,
    OwnerPlansFound,
    Pending,
    PendingFound,
    PlanBytes,
    PlanId,
    Slot,
    Status,
    StatusReport,
)
from runtime.wire import Frame
from runtime.worker import Worker

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Waiting:
    """A plan that waits for the owner's decision: the plan itself, and who asked for what."""

    plan: Plan
    description: str
    asked: tuple[AskedInfo, ...]


class OwnerHandle:
    """A worker as its owner sees it.

    Args:
        connection: the way to it; the worker must know the other end as its owner.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def status(self) -> StatusReport:
        """How the worker is: what it holds, who uses it, how many plans wait."""
        return self._ask(Status(), StatusReport)

    def objects(self) -> tuple[OwnerObject, ...]:
        """All objects of everybody, without their elements."""
        return self._ask(OwnerObjects(), OwnerObjectsFound).items

    def plans(self) -> tuple[OwnerPlan, ...]:
        """All plans, who installed them, and what was decided about them."""
        return self._ask(OwnerPlans(), OwnerPlansFound).items

    def pending(self) -> list[Waiting]:
        """The plans that wait for a decision, those that waited longest first.

        Raises:
            DecodeError: the worker sent something else than the plans of these ids.
        """
        answer, tensors = self._connection.call(Pending())
        found = _expect(answer, PendingFound)
        return [
            Waiting(_plan(each.plan_id, each.plan, each.constants, tensors), each.description, each.asked)
            for each in found.items
        ]

    def plan(self, plan_id: str) -> Plan:
        """An installed plan, to read.

        Raises:
            PlanNotFound: it is not installed.
            DecodeError: the worker sent something else than the plan of this id.
        """
        answer, tensors = self._connection.call(FetchPlan(plan_id))
        found = _expect(answer, PlanBytes)
        return _plan(plan_id, found.plan, found.constants, tensors)

    def approve(
        self,
        plan_id: str,
        *,
        clients: Sequence[str] = (),
        inputs: Mapping[str, Sequence[str]] | None = None,
        runs: int | None = None,
        expires: float | None = None,
    ) -> None:
        """Let the results of exactly this plan on private originals leave.

        Args:
            plan_id: the whole id.
            clients: who may run it so; anybody where none is given.
            inputs: by the path of an input, tags of data that the worker offers, or ids of objects, that may
            stand
                there. Where any input is given, private data may stand at no other.
            runs: how many runs may release something.
            expires: when it ends, in seconds since 1970.

        Raises:
            InputError: the plan has no such input, or the end is in the past.
        """
        bound = {path: tuple(names) for path, names in (inputs or {}).items()}
        self._connection.call(Approve(plan_id, tuple(clients), bound, runs, expires))

    def deny(self, plan_id: str, reason: str = "") -> None:
        """Refuse a plan on data that is not its client's own, and take approvals of it back."""
        self._connection.call(Deny(plan_id, reason))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _ask(self, body: Body, kind: type[_Answer]) -> _Answer:
        answer, _ = self._connection.call(body)
        return _expect(answer, kind)


class _OwnersChannel:
    """The way to a worker of this process for its owner."""

    def __init__(self, worker: Worker) -> None:
        self._worker: Worker | None = worker

    def call(self, frame: Frame) -> bytearray:
        if self._worker is None:
            raise ConnectionLost("the channel is closed")
        whole = frame if isinstance(frame, bytearray) else frame.join()
        return self._worker.handle_frame(whole, Identity(OWNER_NAME, Role.OWNER))

    def close(self) -> None:
        self._worker = None


def owner_of(worker: Worker) -> OwnerHandle:
    """The handle of the owner of a worker in this process."""
    return OwnerHandle(Connection(_OwnersChannel(worker), OWNER_NAME))


def _expect(answer: Answer, kind: type[_Answer]) -> _Answer:
    if not isinstance(answer, kind):
        raise DecodeError(f"expected a {kind.__name__}, got a {type(answer).__name__}")
    return answer


def _plan(id: str, data: bytes, constants: Mapping[PlanId, Slot], tensors: Sequence[torch.Tensor]) -> Plan:
    """A plan that a worker sent: what the owner reads must be what the id names, whatever the worker says."""
    graph = decode(data)
    if plan_id(graph) != id:
        raise DecodeError(f"the worker sent plan {plan_id(graph)} for {id}")
    if any(slot.index >= len(tensors) for slot in constants.values()):
        raise DecodeError(f"the worker means more than the {len(tensors)} tensors that came along")
    return Plan(Program(graph, {name: tensors[slot.index] for name, slot in constants.items()}))


__all__ = ["OwnerHandle", "Waiting", "owner_of"]
