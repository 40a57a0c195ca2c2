"""What a worker does for each message: one function each, in one table. Rights come with the `Call`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from runtime.handlers import autograd, cohort, eager, objects, owner, plans, runs, steps

HANDLERS: dict[type, Callable[..., Any]] = {
    **objects.HANDLERS,
    **eager.HANDLERS,
    **autograd.HANDLERS,
    **plans.HANDLERS,
    **cohort.HANDLERS,
    **runs.HANDLERS,
    **steps.HANDLERS,
    **owner.HANDLERS,
}
"""Message type -> ``handler(call, body) -> answer``. A handler that raises has changed nothing."""

__all__ = ["HANDLERS"]
