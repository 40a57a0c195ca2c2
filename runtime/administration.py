"""The messages of a worker's owner, and the answers to them: part of the closed set of `runtime.messages`.

Layout only: `runtime.handlers.owner` says what they do. None carries elements.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, field

from planc.ir import DType
from runtime.forms import MAX_ID, Form, Id, Names, PlanId, Pointer, Slot, Tagged, Text

# Requests: the worker's owner


class Status(Tagged, frozen=True, tag="status"):
    """How the worker is. For its owner. Reply: StatusReport."""


class OwnerObjects(Tagged, frozen=True, tag="owner-objects"):
    """All objects of everybody, without elements. For the worker's owner. Reply: OwnerObjectsFound."""


class OwnerPlans(Tagged, frozen=True, tag="owner-plans"):
    """All plans, and what was decided about any. For the worker's owner. Reply: OwnerPlansFound."""


class Pending(Tagged, frozen=True, tag="pending"):
    """The plans that wait for a decision. For the worker's owner. Reply: PendingFound."""


Bindings = Annotated[dict[Text, Names], Meta(max_length=65_536)]
"""By the path of an input, the names of the data that may stand there."""


class Approve(Tagged, frozen=True, tag="approve"):
    """Let a plan release its results; see `runtime.access.approvals.Approval`. For the worker's owner.

    No clients at all stand for anybody. Reply: Done.
    """

    plan_id: PlanId
    clients: Names = ()
    inputs: Bindings = field(default_factory=dict[str, tuple[str, ...]])
    runs: Annotated[int, Meta(ge=1, le=MAX_ID)] | None = None
    expires: float | None = None


class Deny(Tagged, frozen=True, tag="deny"):
    """Refuse a plan, and take approvals of it back. For the worker's owner. Reply: Done."""

    plan_id: PlanId
    reason: Text = ""


# Replies


class ClientInfo(Form, frozen=True):
    """One client, as the worker's owner sees it. ``bytes`` are those of its objects and plans."""

    name: str
    sessions: int
    requests: int
    refused: int
    running: int
    bytes: int
    seconds: float


class StatusReport(Tagged, frozen=True, tag="status-report"):
    """How a worker is; ``uptime`` in seconds, ``audit`` the number and hash of the audit log's last line."""

    worker: str
    device: str
    uptime: float
    objects: int
    bytes: int
    plans: int
    plan_bytes: int
    running: int
    pending: int
    clients: tuple[ClientInfo, ...]
    audit: tuple[int, str] | None


class OwnerObject(Form, frozen=True):
    """One object as the worker's owner sees it; ``bytes`` are those of its elements."""

    id: Id
    owner: str
    dtype: DType | None
    shape: tuple[int, ...]
    tags: Names
    description: Text
    private: bool
    derived: bool
    allowed: tuple[str, ...]
    bytes: int
    pointer: Pointer | None


class OwnerObjectsFound(Tagged, frozen=True, tag="owner-objects-found"):
    """All objects, by id."""

    items: tuple[OwnerObject, ...]


class ApprovalInfo(Form, frozen=True):
    """One approval; ``clients`` is None for anybody."""

    clients: tuple[str, ...] | None
    inputs: dict[str, tuple[str, ...]]
    runs: int | None
    expires: float | None


class OwnerPlan(Form, frozen=True):
    """One plan: who installed it (nobody: it is not here), and what was decided; ``denied`` is the reason."""

    plan_id: PlanId
    name: str
    tags: Names
    description: Text
    clients: tuple[str, ...]
    nodes: int
    bytes: int
    approvals: tuple[ApprovalInfo, ...]
    denied: str | None


class OwnerPlansFound(Tagged, frozen=True, tag="owner-plans-found"):
    """Plans, by id."""

    items: tuple[OwnerPlan, ...]


class AskedInfo(Form, frozen=True):
    """Who asked for a plan, first and last at these times (seconds since 1970).

    ``inputs`` are ids of private data and of data of others by path, ``leaves`` the paths of results.
    """

    client: str
    inputs: dict[str, str]
    leaves: tuple[str, ...]
    first: float
    last: float
    count: int


class PendingPlan(Form, frozen=True):
    """A plan that waits for a decision, as canonical bytes and its constants."""

    plan_id: PlanId
    plan: bytes
    constants: dict[PlanId, Slot]
    description: Text
    asked: tuple[AskedInfo, ...]


class PendingFound(Tagged, frozen=True, tag="pending-found"):
    """The plans that wait, those that waited longest first."""

    items: tuple[PendingPlan, ...]
