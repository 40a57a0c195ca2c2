"""From Python to the IR: functions, modules, whole training steps, and epochs of them."""

from planc.capture.epoch import KEY, epoch
from planc.capture.step import train_step
from planc.capture.trace import Captured, trace
from planc.ops.randomness import make_key

__all__ = ["KEY", "Captured", "epoch", "make_key", "trace", "train_step"]
