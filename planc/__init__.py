"""planc: PyTorch code as explicit, typed, bounded plans, optimised, and shipped to where the data is."""

from planc import errors
from planc.api import (
    FunctionPlan,
    PlanModule,
    clip_grad_norm,
    clip_grad_value,
    epoch,
    key,
    load,
    load_exported,
    optimize,
    parse,
    plan,
    trace,
    train_step,
    verify,
)
from planc.cost import Cost
from planc.errors import PlancError
from planc.plans import Plan

__all__ = [
    "Cost",
    "FunctionPlan",
    "Plan",
    "PlanModule",
    "PlancError",
    "clip_grad_norm",
    "clip_grad_value",
    "epoch",
    "errors",
    "key",
    "load",
    "load_exported",
    "optimize",
    "parse",
    "plan",
    "trace",
    "train_step",
    "verify",
]
__version__ = "0.1.0"
