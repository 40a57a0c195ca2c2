"""From a plan to running it: binding dims to sizes, generated code, and a cache of executables."""

from planc.lower.bind import bind_tensors
from planc.lower.executable import Executable, ExecutableCache

__all__ = ["Executable", "ExecutableCache", "bind_tensors"]
