"""What an error that came from a worker means for a federated run, in one place. Decides, does nothing."""

from __future__ import annotations

from planc.errors import DecodeError
from runtime.errors import (
    ConnectionLost,
    ObjectNotFound,
    PlanNotFound,
    RemoteDecodeError,
    ReplayError,
    WorkerError,
)

_LOST = (ConnectionLost, PlanNotFound, ObjectNotFound, ReplayError, DecodeError)
"""Nothing comes from there, or it does not make sense, or the worker forgot what it had."""


def means_lost(error: BaseException) -> bool:
    """Whether a worker is to be counted on no more; else, it refused what it was asked."""
    return isinstance(error, _LOST) and not isinstance(error, RemoteDecodeError)


def in_words(error: BaseException | None) -> str:
    """An error in one line: of which kind, and what was wrong."""
    said = error.message if isinstance(error, WorkerError) else str(error)
    return f"{type(error).__name__}: {said}"


__all__ = ["in_words", "means_lost"]
