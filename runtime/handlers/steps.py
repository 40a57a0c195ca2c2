"""An optimizer update of several parts, each an op or a plan. What each part does: `eager` and `plans`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from planc.errors import InputError
from runtime.call import Call, require_unique
from runtime.handlers.eager import step_puts
from runtime.handlers.runs import run_puts
from runtime.messages import Done, Gradient, Return, Run, Step, Steps
from runtime.store import Stored


def _steps(call: Call, body: Steps) -> Done:
    """Compute all parts, then commit them."""
    made: list[dict[int, Stored]] = []
    for part in body.parts:
        if isinstance(part, Step):
            made.append(step_puts(call, part))
            continue
        if any(isinstance(wish, Return) for wish in (*part.results, *part.updates)):
            raise InputError("a part of an optimizer update cannot return results: keep them, and get them")
        if _has_gradients(call, part):
            # The lock stays closed: between the parts nobody may see, or change, what they work on.
            made.append(run_puts(call, part))
    require_unique(id for puts in made for id in puts)
    call.site.store.commit({id: stored for puts in made for id, stored in puts.items()})
    return Done()


def _has_gradients(call: Call, run: Run) -> bool:
    named = [argument.id for argument in run.inputs if isinstance(argument, Gradient)]
    return all(call.tensor(id, call.change(id)).grad is not None for id in named)


HANDLERS: dict[type, Callable[..., Any]] = {Steps: _steps}
