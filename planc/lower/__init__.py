"""From a plan to running it: binding dims to sizes, generated code, and a cache of executables."""

from planc.lower.bind import bind_tensors
from planc.lower.cache import ExecutableCache, profile
from planc.lower.executable import Executable, Timing

__all__ = ["Executable", "ExecutableCache", "Timing", "bind_tensors", "profile"]
