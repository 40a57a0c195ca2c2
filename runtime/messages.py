"""The closed set of messages between a caller and a worker, as typed structs. Layout only.

`handlers` says what they do and `wire` how they travel. To add one: a struct and its line in ``Body``
here, and a function there.

Tensors are not part of a message: a ``Slot`` is the index of one in the frame that carries the message.
Sizes are bounded here so that a hostile frame cannot make many objects out of few bytes.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from planc.ir import DType

MAX_ID = 2**63 - 1
MAX_TAGS = 64
Id = Annotated[int, Meta(ge=1, le=MAX_ID)]
"""The id of an object: chosen by the caller, unique at its worker."""
Ids = Annotated[tuple[Id, ...], Meta(max_length=65_536)]
Name = Annotated[str, Meta(max_length=256)]
Names = Annotated[tuple[Name, ...], Meta(max_length=MAX_TAGS)]
Text = Annotated[str, Meta(max_length=4096)]
PlanId = Annotated[str, Meta(max_length=64)]
Size = Annotated[int, Meta(ge=0, le=MAX_ID)]


class _Form(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """An untagged form: its place says what it is."""


class _Tagged(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True, tag_field="t"):
    """A form with its tag in front, where several could stand."""


# Values


class Handle(_Tagged, frozen=True, tag=0):
    """An object in the worker's store."""

    id: Id


class Slot(_Tagged, frozen=True, tag=1):
    """A tensor of the frame that carries this message."""

    index: Size


class Pointer(_Tagged, frozen=True, tag=2):
    """An object at a worker, held as a value of its own."""

    worker: Name
    id: Id


class Items(_Tagged, frozen=True, tag=3):
    """An operand that is a list of tensors."""

    items: Annotated[tuple[Handle | Slot | None, ...], Meta(max_length=20_000)]


class ElementType(_Tagged, frozen=True, tag=4):
    """An attribute that is a dtype."""

    dtype: DType


class Numbers(_Tagged, frozen=True, tag=5):
    """An attribute that is a list."""

    items: Annotated[tuple[int | float | bool, ...], Meta(max_length=4096)]


class Gradient(_Tagged, frozen=True, tag=6):
    """The ``.grad`` of an object in the worker's store."""

    id: Id


Argument = Handle | Slot | Items | int | float | bool | None
Value = Slot | Pointer
Attr = int | float | bool | str | ElementType | Numbers | None
Attrs = Annotated[dict[Name, Attr], Meta(max_length=64)]


# Requests: objects


class PutItem(_Form, frozen=True):
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


class Put(_Tagged, frozen=True, tag="put"):
    """Keep these objects, all or none. Reply: Done."""

    items: Annotated[tuple[PutItem, ...], Meta(max_length=65_536)]


class Get(_Tagged, frozen=True, tag="get"):
    """Fetch objects, and delete them there if asked. Reply: Values, in order."""

    ids: Ids
    delete: bool = False


class Copy(_Tagged, frozen=True, tag="copy"):
    """Give each source a copy under a new id. Reply: Done."""

    ids: Ids
    new_ids: Ids


class Free(_Tagged, frozen=True, tag="free"):
    """Delete objects. Reply: Done."""

    ids: Ids


class Search(_Tagged, frozen=True, tag="search"):
    """The objects that have all of these tags. Reply: Found."""

    tags: Names


class List(_Tagged, frozen=True, tag="list"):
    """All objects that the client may see. Reply: Found."""


class Clear(_Tagged, frozen=True, tag="clear"):
    """Delete all objects of this client. Reply: Done."""


class Transfer(_Tagged, frozen=True, tag="transfer"):
    """Send objects straight to another worker, under new ids; they stay here too if ``keep``. Reply: Done."""

    ids: Ids
    to: Name
    new_ids: Ids
    keep: bool = False


# Requests: one eager operation


class Apply(_Tagged, frozen=True, tag="apply"):
    """Run one op of the table and keep its results (None drops one). Reply: Done.

    With ``grad``, and an operand that requires grad, the results know where they came from.
    """

    op: Name
    operands: Annotated[tuple[Argument, ...], Meta(max_length=64)]
    attrs: Attrs
    results: Annotated[tuple[Id | None, ...], Meta(max_length=20_000)]
    grad: bool = True


class Backward(_Tagged, frozen=True, tag="backward"):
    """Add the gradients of an object to the ``.grad`` of the objects that it came from. Reply: Done."""

    id: Id
    gradient: Handle | Slot | None = None
    retain: bool = False


class Grad(_Tagged, frozen=True, tag="grad"):
    """Keep the ``.grad`` of an object as an object of its own. Reply: Done."""

    id: Id
    result: Id


class ZeroGrad(_Tagged, frozen=True, tag="zero-grad"):
    """Forget the ``.grad`` of objects. Reply: Done."""

    ids: Ids


class RequireGrad(_Tagged, frozen=True, tag="require-grad"):
    """Let objects require grad, or no longer. Reply: Done."""

    ids: Ids
    value: bool


class Step(_Tagged, frozen=True, tag="step"):
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


class Install(_Tagged, frozen=True, tag="install"):
    """Keep a plan (canonical bytes) and its constants. Reply: Done."""

    plan_id: PlanId
    plan: bytes
    constants: Annotated[dict[PlanId, Slot], Meta(max_length=20_000)] = {}
    tags: Names = ()
    description: Text = ""


class Keep(_Tagged, frozen=True, tag=0):
    """Keep this result under an id."""

    id: Id


class Return(_Tagged, frozen=True, tag=1):
    """Send this result back in the reply."""


class Drop(_Tagged, frozen=True, tag=2):
    """Forget this result."""


class Update(_Tagged, frozen=True, tag=3):
    """Replace the state that this result updates, under the same id."""


class Run(_Tagged, frozen=True, tag="run"):
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


class Steps(_Tagged, frozen=True, tag="steps"):
    """The parts of one optimizer update, by ops and by plans: all of them or none. Reply: Done.

    A plan that takes a `Gradient` that is not there is left out. None may ``Return``, and no two may write to
    one object. Each works on what was there before.
    """

    parts: Annotated[tuple[Step | Run, ...], Meta(max_length=65_536)]


class FetchPlan(_Tagged, frozen=True, tag="fetch-plan"):
    """The bytes of an installed plan. Reply: PlanBytes."""

    plan_id: PlanId


class Plans(_Tagged, frozen=True, tag="plans"):
    """The plans that have all of these tags. Reply: PlansFound."""

    tags: Names = ()


class Uninstall(_Tagged, frozen=True, tag="uninstall"):
    """Forget plans that this client installed. Reply: Done."""

    plan_ids: Annotated[tuple[PlanId, ...], Meta(max_length=65_536)]


# Requests: the worker's owner


class Status(_Tagged, frozen=True, tag="status"):
    """How the worker is. For its owner. Reply: StatusReport."""


class OwnerObjects(_Tagged, frozen=True, tag="owner-objects"):
    """All objects of everybody, without elements. For the worker's owner. Reply: OwnerObjectsFound."""


class OwnerPlans(_Tagged, frozen=True, tag="owner-plans"):
    """All plans, and what was decided about any. For the worker's owner. Reply: OwnerPlansFound."""


class Pending(_Tagged, frozen=True, tag="pending"):
    """The plans that wait for a decision. For the worker's owner. Reply: PendingFound."""


Bindings = Annotated[dict[Text, Names], Meta(max_length=65_536)]
"""By the path of an input, the names of the data that may stand there."""


class Approve(_Tagged, frozen=True, tag="approve"):
    """Let a plan release its results; see `runtime.access.approvals.Approval`. For the worker's owner.

    No clients at all stand for anybody. Reply: Done.
    """

    plan_id: PlanId
    clients: Names = ()
    inputs: Bindings = {}
    runs: Annotated[int, Meta(ge=1, le=MAX_ID)] | None = None
    expires: float | None = None


class Deny(_Tagged, frozen=True, tag="deny"):
    """Refuse a plan, and take approvals of it back. For the worker's owner. Reply: Done."""

    plan_id: PlanId
    reason: Text = ""


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


class Request(_Tagged, frozen=True, tag="request"):
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


class Done(_Tagged, frozen=True, tag="done"):
    """It is done."""


class Values(_Tagged, frozen=True, tag="values"):
    """Tensors and pointers."""

    items: Annotated[tuple[Value, ...], Meta(max_length=65_536)]


class ObjectInfo(_Form, frozen=True):
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


class Found(_Tagged, frozen=True, tag="found"):
    """Objects, by id."""

    items: tuple[ObjectInfo, ...]


class PlanInfo(_Form, frozen=True):
    """One installed plan."""

    plan_id: PlanId
    name: Name
    tags: Names
    description: Text


class PlansFound(_Tagged, frozen=True, tag="plans-found"):
    """Plans, by id."""

    items: tuple[PlanInfo, ...]


class PlanBytes(_Tagged, frozen=True, tag="plan-bytes"):
    """A plan as canonical bytes, and its constants."""

    plan: bytes
    constants: dict[PlanId, Slot]


class ClientInfo(_Form, frozen=True):
    """One client, as the worker's owner sees it. ``bytes`` are those of its objects and plans."""

    name: str
    sessions: int
    requests: int
    refused: int
    running: int
    bytes: int
    seconds: float


class StatusReport(_Tagged, frozen=True, tag="status-report"):
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


class OwnerObject(_Form, frozen=True):
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


class OwnerObjectsFound(_Tagged, frozen=True, tag="owner-objects-found"):
    """All objects, by id."""

    items: tuple[OwnerObject, ...]


class ApprovalInfo(_Form, frozen=True):
    """One approval; ``clients`` is None for anybody."""

    clients: tuple[str, ...] | None
    inputs: dict[str, tuple[str, ...]]
    runs: int | None
    expires: float | None


class OwnerPlan(_Form, frozen=True):
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


class OwnerPlansFound(_Tagged, frozen=True, tag="owner-plans-found"):
    """Plans, by id."""

    items: tuple[OwnerPlan, ...]


class AskedInfo(_Form, frozen=True):
    """Who asked for a plan, first and last at these times (seconds since 1970).

    ``inputs`` are ids of private data and of data of others by path, ``leaves`` the paths of results.
    """

    client: str
    inputs: dict[str, str]
    leaves: tuple[str, ...]
    first: float
    last: float
    count: int


class PendingPlan(_Form, frozen=True):
    """A plan that waits for a decision, as canonical bytes and its constants."""

    plan_id: PlanId
    plan: bytes
    constants: dict[PlanId, Slot]
    description: Text
    asked: tuple[AskedInfo, ...]


class PendingFound(_Tagged, frozen=True, tag="pending-found"):
    """The plans that wait, those that waited longest first."""

    items: tuple[PendingPlan, ...]


class Failure(_Tagged, frozen=True, tag="failure"):
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
    | Failure
)


class Reply(_Tagged, frozen=True, tag="reply"):
    """An answer and the number of the request it belongs to (0 where that could not be read)."""

    request_id: Size
    body: Answer


Message = Request | Reply
