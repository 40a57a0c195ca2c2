"""From a plan to running it: binding dims to sizes, generated code, and a cache of executables."""

from planc.lower.bind import bind_tensors
from planc.lower.cache import BACKENDS, Backend, ExecutableCache, Kinds, kinds_of, profile
from planc.lower.executable import Executable, Timing

__all__ = [
    "BACKENDS",
    "Backend",
    "Executable",
    "ExecutableCache",
    "Kinds",
    "Timing",
    "bind_tensors",
    "kinds_of",
    "profile",
]
