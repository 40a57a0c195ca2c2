"""What the worker's owner decided about plans, and what waits for them. Decides by id; reads no plan.

An approval is for one plan id, and may be narrowed: to clients, to the data that stands at each input, to a
number of runs, to a time. A plan that is safe once on one data set may tell everything when it is run often
or on inputs of the client's choice, so narrow is the usual case. Not thread-safe: the worker has the lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import msgspec

from runtime.errors import ApprovalNeeded, PermissionDenied
from runtime.policy import Secrecy
from runtime.store import Stored

_PER_PLAN = 64
"""Approvals of one plan: for other clients, or other data."""
_PENDING = 256
_PENDING_PER_CLIENT = 16
_SHOWN = 32
"""Inputs of a waiting run that are kept for the owner to see."""


class Approval(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One approval.

    Attributes:
        clients: who may run the plan so; None for anybody.
        inputs: by the path of an input, what may stand there: a tag of data that the worker itself offers,
        or the
            id of an object. With any, private data may stand at no other input.
        runs: how many runs may release something; None for any number.
        expires: when it ends, in seconds since 1970; None for never.
    """

    clients: tuple[str, ...] | None = None
    inputs: dict[str, tuple[str, ...]] = {}
    runs: Annotated[int, msgspec.Meta(ge=0)] | None = None
    expires: float | None = None


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A plan that a client was refused for want of an approval: what the owner is asked.

    Attributes:
        inputs: by path, the ids of the private data, and the data of others, that stood there.
        leaves: the paths of the results that were to be sent back or kept.
        count: how often it was refused.
    """

    client: str
    inputs: dict[str, str]
    leaves: tuple[str, ...]
    first: float
    last: float
    count: int = 1


class Decisions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All about one plan: its approvals, why it was denied (None: it was not), who waits for a decision."""

    approved: tuple[Approval, ...] = ()
    denied: str | None = None
    pending: dict[str, Asked] = {}


_NONE = Decisions()


@dataclass(frozen=True, slots=True)
class Bound:
    """What stands at one input of a run: an object and its id, or None for a tensor that came along."""

    path: str
    id: int | None
    stored: Stored | None
    secrecy: Secrecy


@dataclass(slots=True)
class Approvals:
    """The owner's decisions by plan id, and the plans that wait for one.

    Attributes:
        worker: whose owner decides.
        clock: the time, in seconds since 1970.
        keep: told what was decided about a plan after every change, None where that is nothing any more.
    """

    worker: str
    clock: Callable[[], float] = time.time
    keep: Callable[[str, Decisions | None], None] | None = None
    _plans: dict[str, Decisions] = field(default_factory=dict[str, Decisions])
    _before: dict[str, Decisions | None] = field(default_factory=dict[str, "Decisions | None"])

    def approve(self, plan_id: str, approval: Approval | None = None) -> None:
        """Let a plan run and release its results, as far as the approval goes. Takes a denial back."""
        approval = approval or Approval()
        mine = [known for known in self.of(plan_id).approved if _scope(known) != _scope(approval)]
        self._set(plan_id, Decisions(approved=(*mine, approval)[-_PER_PLAN:]))

    def disapprove(self, plan_id: str) -> None:
        """Take all approvals of a plan back."""
        self._set(plan_id, msgspec.structs.replace(self.of(plan_id), approved=()))

    def deny(self, plan_id: str, reason: str = "") -> None:
        """Refuse a plan on all data that is not the client's own. Takes approvals back."""
        self._set(plan_id, Decisions(denied=reason))

    def of(self, plan_id: str) -> Decisions:
        """What was decided about a plan."""
        return self._plans.get(plan_id, _NONE)

    def all(self) -> Mapping[str, Decisions]:
        """What was decided about plans, and which wait, by id."""
        return self._plans

    def restore(self, plans: Mapping[str, Decisions]) -> None:
        """Take what was kept, at the start."""
        self._plans.update(plans)

    @property
    def changed(self) -> bool:
        """Whether anything changed since the last `settle`."""
        return bool(self._before)

    def settle(self) -> None:
        """Let the changes stand."""
        self._before.clear()

    def undo(self) -> None:
        """Take back what changed since the last `settle`."""
        for plan_id, before in list(self._before.items()):
            self._set(plan_id, before or _NONE)
        self._before.clear()

    def require_not_denied(self, plan_id: str) -> None:
        """Refuse a plan that the owner denied.

        Raises:
            PermissionDenied: they did; the text says why.
        """
        reason = self.of(plan_id).denied
        if reason is not None:
            raise PermissionDenied(
                f"the owner of worker {self.worker!r} denied plan {plan_id}"
                + (f": {reason}" if reason else "")
            )

    def find(self, plan_id: str, client: str, bound: Sequence[Bound]) -> Approval | None:
        """An approval that a run of a client on these inputs has, if there is one."""
        now = self.clock()
        for approval in self.of(plan_id).approved:
            if (
                (approval.clients is None or client in approval.clients)
                and (approval.expires is None or now < approval.expires)
                and approval.runs != 0
                and self._fits(approval, bound)
            ):
                return approval
        return None

    def why_not(self, plan_id: str) -> str:
        """Why a plan that has approvals has none for a run, in words; empty where it has none at all."""
        if not self.of(plan_id).approved:
            return ""
        return (
            "; it is approved, but not for this client, this data and this moment (clients, inputs, a "
            "number of runs or a time may be part of an approval)"
        )

    def spend(self, plan_id: str, approval: Approval, runs: int = 1) -> None:
        """Runs use an approval, which has as many left: so many less are left then, also if they fail."""
        if approval.runs is None:
            return
        left = msgspec.structs.replace(approval, runs=approval.runs - runs)
        decided = self.of(plan_id)
        approved = tuple(left if each is approval else each for each in decided.approved)
        self._set(plan_id, msgspec.structs.replace(decided, approved=approved))

    def ask(
        self, plan_id: str, name: str, client: str, inputs: Mapping[str, str], leaves: Sequence[str]
    ) -> ApprovalNeeded:
        """Note that a plan waits for the owner; the error that says so to the client."""
        noted = self._note(plan_id, client, inputs, leaves)
        where = (
            "it waits for them"
            if noted
            else "too many wait for them already, so ask them to decide, then again"
        )
        return ApprovalNeeded(
            f"plan {name!r} ({plan_id}) needs the approval of the owner of worker {self.worker!r}: "
            f"{where}; they can read and approve it there with `planc worker approve "
            f"{plan_id}`{self.why_not(plan_id)}",
            plan_id=plan_id,
        )

    def forget(self, plan_id: str) -> None:
        """A plan is not installed any more: nobody can read it, so it does not wait."""
        self._set(plan_id, msgspec.structs.replace(self.of(plan_id), pending={}))

    def _fits(self, approval: Approval, bound: Sequence[Bound]) -> bool:
        if not approval.inputs:
            return True
        if not approval.inputs.keys() <= {b.path for b in bound}:
            return False
        return all(
            self._matches(b, approval.inputs[b.path]) if b.path in approval.inputs else not b.secrecy.private
            for b in bound
        )

    def _matches(self, bound: Bound, names: Sequence[str]) -> bool:
        """Whether the object at an input is one of those named."""
        if bound.stored is None or bound.id is None:
            return False
        if str(bound.id) in names:
            return True
        # Anybody can give a tag to data of their own: tags are good only for what the worker itself offers.
        return bound.stored.owner == self.worker and not set(names).isdisjoint(bound.stored.tags)

    def _note(self, plan_id: str, client: str, inputs: Mapping[str, str], leaves: Sequence[str]) -> bool:
        now = self.clock()
        decided = self.of(plan_id)
        before = decided.pending.get(client)
        if before is None:
            mine = sum(client in each.pending for each in self._plans.values())
            waiting = sum(len(each.pending) for each in self._plans.values())
            if mine >= _PENDING_PER_CLIENT or waiting >= _PENDING:
                return False
        first, count = (before.first, before.count + 1) if before else (now, 1)
        shown = dict(list(inputs.items())[:_SHOWN])
        asked = Asked(client, shown, tuple(leaves[:_SHOWN]), first, now, count)
        self._set(plan_id, msgspec.structs.replace(decided, pending={**decided.pending, client: asked}))
        return True

    def _set(self, plan_id: str, decided: Decisions) -> None:
        before = self._plans.get(plan_id)
        if decided == (before or _NONE):
            return
        self._before.setdefault(plan_id, before)
        kept = None if decided == _NONE else decided
        if kept is None:
            self._plans.pop(plan_id, None)
        else:
            self._plans[plan_id] = kept
        if self.keep is not None:
            self.keep(plan_id, kept)


def _scope(approval: Approval) -> tuple[object, ...]:
    """What makes two approvals the same one, with another number of runs or time."""
    clients = None if approval.clients is None else frozenset(approval.clients)
    return clients, frozenset((path, frozenset(names)) for path, names in approval.inputs.items())


__all__ = ["Approval", "Approvals", "Asked", "Bound", "Decisions"]
