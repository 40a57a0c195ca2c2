"""The threads that wait for workers while the caller goes on. Knows no plans and no workers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

_THREADS = 32


@cache
def background() -> ThreadPoolExecutor:
    """The pool that all share; its threads start when they are needed."""
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="planc-remote")


__all__ = ["background"]
