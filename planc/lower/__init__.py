"""From a plan to running it: binding dims to sizes, generated code, and a cache of executables."""

from planc.lower.bind import bind_tensors
from planc.lower.cache import (
    BACKENDS,
    Backend,
    Entry,
    ExecutableCache,
    Kind,
    Kinds,
    kind_of,
    kinds_of,
    profile,
)
from planc.lower.executable import Executable, Timing

__all__ = [
    "BACKENDS",
    "Backend",
    "Entry",
    "Executable",
    "ExecutableCache",
    "Kind",
    "Kinds",
    "Timing",
    "bind_tensors",
    "kind_of",
    "kinds_of",
    "profile",
]
