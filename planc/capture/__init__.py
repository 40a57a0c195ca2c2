"""From Python to the IR: functions, modules, whole training steps, and epochs of them."""

from planc.capture.clipping import GradTransform, clip_grad_norm, clip_grad_value
from planc.capture.epoch import KEY, epoch
from planc.capture.exported import load_exported
from planc.capture.gradient import differentiate
from planc.capture.optimizer_plan import optimizer_update
from planc.capture.step import StepOptions, train_step
from planc.capture.trace import Captured, Options, trace
from planc.ops.randomness import make_key

__all__ = [
    "KEY",
    "Captured",
    "GradTransform",
    "Options",
    "StepOptions",
    "clip_grad_norm",
    "clip_grad_value",
    "differentiate",
    "epoch",
    "load_exported",
    "make_key",
    "optimizer_update",
    "trace",
    "train_step",
]
