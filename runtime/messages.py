"""The closed set of messages between a caller and a worker, as typed structs. Layout only.

`handlers` says what they do and `wire` how they travel. To add one: a struct and its line in ``Body``
here, and a function there.

Tensors are not part of a message: a ``Slot`` is the index of one in the frame that carries the message.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, field

from planc.ir import DType
from runtime.administration import (
    ApprovalInfo,
    Approve,
    AskedInfo,
    ClientInfo,
    Deny,
    OwnerObject,
    OwnerObjects,
    OwnerObjectsFound,
    OwnerPlan,
    OwnerPlans,
    OwnerPlansFound,
    Pending,
    PendingFound,
    PendingPlan,
    Status,
    StatusReport,
)
from runtime.cohorts import Cohort, CohortDone
from runtime.forms import (
    MAX_ID,
    MAX_TAGS,
    ElementType,
    Form,
    Gradient,
    Handle,
    Id,
    Ids,
    Items,
    Name,
    Names,
    Numbers,
    PlanId,
    Pointer,
    Size,
    Slot,
    Tagged,
    Text,
)

Argument = Handle | Slot | Items | int | float | bool | None
Value = Slot | Pointer
Attr = int | float | bool | str | ElementType | Numbers | None
Attrs = Annotated[dict[Name, Attr], Meta(max_length=64)]


# Requests: objects


class PutItem(Form, frozen=True):
    """One object to keep.

    ``owner`` is whom it belongs to; "" is the client that sends it (another only a peer worker may name).
    ``allowed`` are the clients and workers that may have a private value. ``derived`` marks a private value
    that was computed from private ones.
    """

    id: Id
    value: Value
    tags: Names = ()
    description: Text = ""
    private: bool = False
    requires_grad: bool = False
    allowed: Names = ()
    owner: Name = ""
    derived: bool = False


class Put(Tagged, frozen=True, tag="put"):
    """Keep these objects, all or none. Reply: Done."""

    items: Annotated[tuple[PutItem, ...], Meta(max_length=65_536)]


class Get(Tagged, frozen=True, tag="get"):
    """Fetch objects, and delete them there if asked. Reply: Values, in order."""

    ids: Ids
    delete: bool = False


class Copy(Tagged, frozen=True, tag="copy"):
    """Give each source a copy under a new id. Reply: Done."""

    ids: Ids
    new_ids: Ids


class Free(Tagged, frozen=True, tag="free"):
    """Delete objects. Reply: Done."""

    ids: Ids


class Search(Tagged, frozen=True, tag="search"):
    """The objects that have all of these tags. Reply: Found."""

    tags: Names


class List(Tagged, frozen=True, tag="list"):
    """All objects that the client may see. Reply: Found."""


class Clear(Tagged, frozen=True, tag="clear"):
    """Delete all objects of this client. Reply: Done."""


class Transfer(Tagged, frozen=True, tag="transfer"):
    """Send objects straight to another worker, under new ids; they stay here too if ``keep``. Reply: Done."""

    ids: Ids
    to: Name
    new_ids: Ids
    keep: bool = False


# Requests: one eager operation


class Apply(Tagged, frozen=True, tag="apply"):
    """Run one op of the table and keep its results (None drops one). Reply: Done.

    With ``grad``, and an operand that requires grad, the results know where they came from.
    """

    op: Name
    operands: Annotated[tuple[Argument, ...], Meta(max_length=64)]
    attrs: Attrs
    results: Annotated[tuple[Id | None, ...], Meta(max_length=20_000)]
    grad: bool = True


class Backward(Tagged, frozen=True, tag="backward"):
    """Add the gradients of an object to the ``.grad`` of the objects that it came from. Reply: Done."""

    id: Id
    gradient: Handle | Slot | None = None
    retain: bool = False


class Grad(Tagged, frozen=True, tag="grad"):
    """Keep the ``.grad`` of an object as an object of its own. Reply: Done."""

    id: Id
    result: Id


class ZeroGrad(Tagged, frozen=True, tag="zero-grad"):
    """Forget the ``.grad`` of objects. Reply: Done."""

    ids: Ids


class RequireGrad(Tagged, frozen=True, tag="require-grad"):
    """Let objects require grad, or no longer. Reply: Done."""

    ids: Ids
    value: bool


class Step(Tagged, frozen=True, tag="step"):
    """One optimizer update of parameters from their ``.grad``; those without one are left alone. Reply: Done.

    ``state`` has one list of ids for each state operand of the op, in its order: one id a parameter, or none
    where the op uses none. State that is not there yet is made as zeros.
    """

    optimizer: Name
    attrs: Attrs
    lr: float
    params: Ids
    state: Annotated[tuple[Ids, ...], Meta(max_length=16)] = ()


# Requests: plans


class Install(Tagged, frozen=True, tag="install"):
    """Keep a plan (canonical bytes) and its constants. Reply: Done."""

    plan_id: PlanId
    plan: bytes
    constants: Annotated[dict[PlanId, Slot], Meta(max_length=20_000)] = field(default_factory=dict[str, Slot])
    tags: Names = ()
    description: Text = ""


class Keep(Tagged, frozen=True, tag=0):
    """Keep this result under an id."""

    id: Id


class Return(Tagged, frozen=True, tag=1):
    """Send this result back in the reply."""


class Drop(Tagged, frozen=True, tag=2):
    """Forget this result."""


class Update(Tagged, frozen=True, tag=3):
    """Replace the state that this result updates, under the same id."""


class Run(Tagged, frozen=True, tag="run"):
    """Run an installed plan. Reply: Values, the results to ``Return``, in the order of the graph's outputs.

    ``inputs`` has one entry for each input of the graph in order (a `Gradient` is a tensor of its own, cut
    from autograd), ``results`` one for each output that is no
    state, ``updates`` one for each that is; none at all stands for an `Update` each. State that is updated so
    must be given by handle. What is replaced or kept is so wholly or not at all. With ``grad``, results that
    are kept know where they came from, where an input requires grad.
    """

    plan_id: PlanId
    inputs: Annotated[tuple[Handle | Slot | Gradient, ...], Meta(max_length=65_536)]
    results: Annotated[tuple[Keep | Return | Drop, ...], Meta(max_length=65_536)]
    updates: Annotated[tuple[Keep | Return | Drop | Update, ...], Meta(max_length=65_536)] = ()
    grad: bool = False


class Steps(Tagged, frozen=True, tag="steps"):
    """The parts of one optimizer update, by ops and by plans: all of them or none. Reply: Done.

    A plan that takes a `Gradient` that is not there is left out. None may ``Return``, and no two may write to
    one object. Each works on what was there before.
    """

    parts: Annotated[tuple[Step | Run, ...], Meta(max_length=65_536)]


class FetchPlan(Tagged, frozen=True, tag="fetch-plan"):
    """The bytes of an installed plan. Reply: PlanBytes."""

    plan_id: PlanId


class Plans(Tagged, frozen=True, tag="plans"):
    """The plans that have all of these tags. Reply: PlansFound."""

    tags: Names = ()


class Uninstall(Tagged, frozen=True, tag="uninstall"):
    """Forget plans that this client installed. Reply: Done."""

    plan_ids: Annotated[tuple[PlanId, ...], Meta(max_length=65_536)]


Body = (
    Put
    | Get
    | Copy
    | Free
    | Search
    | List
    | Clear
    | Transfer
    | Apply
    | Backward
    | Grad
    | ZeroGrad
    | RequireGrad
    | Step
    | Install
    | Run
    | Steps
    | Cohort
    | FetchPlan
    | Plans
    | Uninstall
    | Status
    | OwnerObjects
    | OwnerPlans
    | Pending
    | Approve
    | Deny
)


class Request(Tagged, frozen=True, tag="request"):
    """A message with its envelope.

    A client numbers the requests of a session upwards; ``settled`` says that the replies of all up to that
    number arrived. ``release`` are objects that the client no longer needs: freed before anything else.
    ``behind`` is a request whose reply the client did not wait for: if it failed, this one is not applied.
    """

    client: Name
    session: Size
    request_id: Id
    settled: Size
    release: Ids
    body: Body
    behind: Size = 0


# Replies


class Done(Tagged, frozen=True, tag="done"):
    """It is done."""


class Values(Tagged, frozen=True, tag="values"):
    """Tensors and pointers."""

    items: Annotated[tuple[Value, ...], Meta(max_length=65_536)]


class ObjectInfo(Form, frozen=True):
    """One object, without its elements. A pointer has no dtype; ``preview`` is "" if it may not leave."""

    id: Id
    dtype: DType | None
    shape: tuple[int, ...]
    tags: Names
    description: Text
    private: bool
    requires_grad: bool
    pointer: Pointer | None
    preview: str


class Found(Tagged, frozen=True, tag="found"):
    """Objects, by id."""

    items: tuple[ObjectInfo, ...]


class PlanInfo(Form, frozen=True):
    """One installed plan."""

    plan_id: PlanId
    name: Name
    tags: Names
    description: Text


class PlansFound(Tagged, frozen=True, tag="plans-found"):
    """Plans, by id."""

    items: tuple[PlanInfo, ...]


class PlanBytes(Tagged, frozen=True, tag="plan-bytes"):
    """A plan as canonical bytes, and its constants."""

    plan: bytes
    constants: dict[PlanId, Slot]


class Failure(Tagged, frozen=True, tag="failure"):
    """An error: see `runtime.errors` for the kinds."""

    kind: str
    message: str
    worker: str = ""
    plan_id: str = ""
    node: int = -1
    op: str = ""


Answer = (
    Done
    | Values
    | Found
    | PlansFound
    | PlanBytes
    | StatusReport
    | OwnerObjectsFound
    | OwnerPlansFound
    | PendingFound
    | CohortDone
    | Failure
)


class Reply(Tagged, frozen=True, tag="reply"):
    """An answer and the number of the request it belongs to (0 where that could not be read)."""

    request_id: Size
    body: Answer


Message = Request | Reply

__all__ = [
    "MAX_ID",
    "MAX_TAGS",
    "Answer",
    "Apply",
    "ApprovalInfo",
    "Approve",
    "Argument",
    "AskedInfo",
    "Attr",
    "Attrs",
    "Backward",
    "Body",
    "Clear",
    "ClientInfo",
    "Cohort",
    "CohortDone",
    "Copy",
    "Deny",
    "Done",
    "Drop",
    "ElementType",
    "Failure",
    "FetchPlan",
    "Found",
    "Free",
    "Get",
    "Grad",
    "Gradient",
    "Handle",
    "Id",
    "Ids",
    "Install",
    "Items",
    "Keep",
    "List",
    "Message",
    "Name",
    "Names",
    "Numbers",
    "ObjectInfo",
    "OwnerObject",
    "OwnerObjects",
    "OwnerObjectsFound",
    "OwnerPlan",
    "OwnerPlans",
    "OwnerPlansFound",
    "Pending",
    "PendingFound",
    "PendingPlan",
    "PlanBytes",
    "PlanId",
    "PlanInfo",
    "Plans",
    "PlansFound",
    "Pointer",
    "Put",
    "PutItem",
    "Reply",
    "Request",
    "RequireGrad",
    "Return",
    "Run",
    "Search",
    "Size",
    "Slot",
    "Status",
    "StatusReport",
    "Step",
    "Steps",
    "Text",
    "Transfer",
    "Uninstall",
    "Update",
    "Value",
    "Values",
    "ZeroGrad",
]
