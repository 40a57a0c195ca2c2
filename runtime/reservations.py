"""Objects that a running plan is going to replace: who names one meanwhile waits until it is done.

So plans run beside other requests, and each request still sees all of a run or nothing. A run reserves
everything at once and waits for nobody while it computes, so nothing can wait in a circle. Not thread-safe by
itself: the worker has the lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from runtime.cohorts import PickedFrom
from runtime.messages import (
    Apply,
    Backward,
    Clear,
    Cohort,
    Copy,
    Free,
    Get,
    Grad,
    Handle,
    Items,
    Keep,
    Put,
    Request,
    RequireGrad,
    Run,
    Slot,
    Step,
    Steps,
    Transfer,
    ZeroGrad,
)


@dataclass(slots=True)
class Reservations:
    """The ids that running plans write to, and how many run."""

    ids: set[int] = field(default_factory=set[int])
    running: int = 0

    def hinder(self, request: Request) -> bool:
        """Whether a request has to wait: it names an object that a running plan is going to replace."""
        if isinstance(request.body, Clear):
            return True
        return not self.ids.isdisjoint(request.release) or not self.ids.isdisjoint(_named(request.body))


def _named(body: Any) -> Iterable[int]:
    names = _NAMED.get(type(body))
    return names(body) if names else ()


def _of_apply(body: Apply) -> Iterator[int]:
    for argument in body.operands:
        if isinstance(argument, Handle):
            yield argument.id
        elif isinstance(argument, Items):
            yield from (item.id for item in argument.items if isinstance(item, Handle))
    yield from (id for id in body.results if id is not None)


def _of_backward(body: Backward) -> Iterator[int]:
    yield body.id
    if isinstance(body.gradient, Handle):
        yield body.gradient.id


def _of_step(body: Step) -> Iterator[int]:
    yield from body.params
    for ids in body.state:
        yield from ids


def _of_run(body: Run) -> Iterator[int]:
    yield from (argument.id for argument in body.inputs if not isinstance(argument, Slot))
    yield from (wish.id for wish in (*body.results, *body.updates) if isinstance(wish, Keep))


def _of_cohort(body: Cohort) -> Iterator[int]:
    yield from (source.id for source in body.inputs if isinstance(source, Handle))
    yield from body.hold
    for member in body.members:
        for source in member.data:
            yield source.id
            if isinstance(source, PickedFrom):
                yield source.index
        yield from member.state
        yield from member.keep


def _of_steps(body: Steps) -> Iterator[int]:
    for part in body.parts:
        yield from _of_step(part) if isinstance(part, Step) else _of_run(part)


_NAMED: dict[type, Callable[[Any], Iterable[int]]] = {
    Put: lambda body: (item.id for item in body.items),
    Get: lambda body: body.ids,
    Copy: lambda body: (*body.ids, *body.new_ids),
    Free: lambda body: body.ids,
    Transfer: lambda body: (*body.ids, *body.new_ids),
    Apply: _of_apply,
    Backward: _of_backward,
    Grad: lambda body: (body.id, body.result),
    ZeroGrad: lambda body: body.ids,
    RequireGrad: lambda body: body.ids,
    Step: _of_step,
    Run: _of_run,
    Steps: _of_steps,
    Cohort: _of_cohort,
}
