"""The channel to a worker in this process.

It carries real frames, so that counts, bytes and errors are those of a wire. It opens no connection.
"""

from __future__ import annotations

from typing import Protocol

from runtime.errors import ConnectionLost
from runtime.wire import Frame


class FrameHandler(Protocol):
    """What answers frames: a `runtime.worker.Worker`."""

    @property
    def id(self) -> str: ...

    def handle_frame(self, frame: bytearray) -> bytearray: ...


class InProcessChannel:
    """Calls a worker directly, in the caller's thread.

    Args:
        worker: the worker at the other end.
    """

    def __init__(self, worker: FrameHandler) -> None:
        self._worker: FrameHandler | None = worker
        self._id = worker.id

    def call(self, frame: Frame) -> bytearray:
        """The reply to a frame.

        Raises:
            ConnectionLost: the channel is closed.
        """
        if self._worker is None:
            raise ConnectionLost("the channel is closed", worker=self._id)
        return self._worker.handle_frame(frame if isinstance(frame, bytearray) else frame.join())

    def close(self) -> None:
        """Let go of the worker."""
        self._worker = None
