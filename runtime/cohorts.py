"""The message that runs one plan for many clients whose data is at a worker, and its answer. Layout only.

`runtime.messages` has all others, and `runtime.handlers.cohort` says what it does.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from runtime.forms import Form, Handle, Id, PlanId, Size, Slot, Tagged, Text
from runtime.sums import MAX_EXPONENT, MAX_SUM

MAX_MEMBERS = 65_536
_PORTS = 65_536


# Where an input comes from, and a member's data


class Own(Tagged, frozen=True, tag=10):
    """The member's own data: the next of ``CohortMember.data``."""


class KeyOf(Tagged, frozen=True, tag=11):
    """The member's random key: its row of a tensor that has one row a member."""

    index: Size


class Begun(Tagged, frozen=True, tag=12):
    """The member's own state: the next of ``CohortMember.state``; this tensor where that is 0 or missing."""

    initial: Slot


class Filled(Tagged, frozen=True, tag=13):
    """As `Begun`, from a tensor of the input's type that is one number everywhere."""

    value: int | float


class RowsOf(Tagged, frozen=True, tag=14):
    """Rows ``start`` to ``stop`` of an object."""

    id: Id
    start: Size
    stop: Size


class PickedFrom(Tagged, frozen=True, tag=15):
    """The rows of an object that rows ``start`` to ``stop`` of another, an index (i64), name."""

    id: Id
    index: Id
    start: Size
    stop: Size


class CohortMember(Form, frozen=True):
    """One client: its weight, its data, the ids of its own state (0: none yet), and those to keep the new at.

    ``state`` has one id for each input that is `Begun` or `Filled`, or none at all, and ``keep`` one for each
    output to be `KeptOwn`, or none at all.
    """

    weight: Annotated[float, Meta(gt=0, le=MAX_SUM)]
    data: Annotated[tuple[Handle | RowsOf | PickedFrom, ...], Meta(max_length=_PORTS)]
    state: Annotated[tuple[Size, ...], Meta(max_length=_PORTS)] = ()
    keep: Annotated[tuple[Id, ...], Meta(max_length=_PORTS)] = ()


# What becomes of an output


class Sum(Tagged, frozen=True, tag=20):
    """Add it up over the members that are done: whole numbers round(weight * value * 2**exponent).

    With ``each``, it is sent back for every such member too.
    """

    exponent: Annotated[int, Meta(ge=-MAX_EXPONENT, le=MAX_EXPONENT)]
    each: bool = False


class Each(Tagged, frozen=True, tag=21):
    """Send it back for every member that is done."""


class Mean(Tagged, frozen=True, tag=22):
    """Send the mean of its elements back for every member that is done."""


class KeptOwn(Tagged, frozen=True, tag=23):
    """Keep it for the members that say where."""


class Dropped(Tagged, frozen=True, tag=24):
    """Forget it."""


class Cohort(Tagged, frozen=True, tag="cohort"):
    """Run an installed plan for each member in turn. Reply: CohortDone.

    ``hold`` has an id for each `Sum`, or none: there the sums stay at the worker, and the reply has none.
    ``inputs`` and ``outputs`` have one entry for each of the graph, in order. A `Handle` or `Slot` is the
    same for all members. A member whose run fails, or whose sums are NaN or larger than ``limit``, changes
    nothing and stops nobody. What the others keep is kept together at the end, or nothing of it. After
    ``seconds`` no more are begun, and the one that runs is given up.
    """

    plan_id: PlanId
    inputs: Annotated[tuple[Handle | Slot | Own | KeyOf | Begun | Filled, ...], Meta(max_length=_PORTS)]
    outputs: Annotated[tuple[Sum | Each | Mean | KeptOwn | Dropped, ...], Meta(max_length=_PORTS)]
    members: Annotated[tuple[CohortMember, ...], Meta(max_length=MAX_MEMBERS)]
    limit: Annotated[float, Meta(ge=1, le=MAX_SUM)] = 1.0
    seconds: Annotated[float, Meta(ge=0)] | None = None
    hold: Annotated[tuple[Id, ...], Meta(max_length=_PORTS)] = ()


class Unfit(Form, frozen=True):
    """A member that does not count, by its place in the message, and why: see `runtime.errors` for kinds.

    The kind "nonsense" is a result that is NaN, or larger than the limit.
    """

    member: Size
    kind: str
    reason: Text


class CohortDone(Tagged, frozen=True, tag="cohort-done"):
    """What came of a cohort. Members are named by their place in the message.

    ``sums`` (i64) are one for each `Sum`, none where nobody is done or they are held; ``each`` (a row for
    each of ``done``) one for each output that is sent back so; ``means`` (f64[outputs, done]) has those of
    each `Mean`, and ``seconds`` (f64[done]) how long each took.
    """

    done: tuple[Size, ...]
    unfit: tuple[Unfit, ...]
    late: tuple[Size, ...]
    sums: tuple[Slot, ...]
    each: tuple[Slot, ...]
    means: Slot
    seconds: Slot


__all__ = [
    "MAX_MEMBERS",
    "Begun",
    "Cohort",
    "CohortDone",
    "CohortMember",
    "Dropped",
    "Each",
    "Filled",
    "KeptOwn",
    "KeyOf",
    "Mean",
    "Own",
    "PickedFrom",
    "RowsOf",
    "Sum",
    "Unfit",
]
