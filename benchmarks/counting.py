"""Counts what a piece of work sends: messages, bytes of frames, and of these the bytes of tensors.

The tensors are told by decoding every frame that goes by; nothing is estimated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from runtime import VirtualWorker, WorkerHandle, count_messages
from runtime.channels import Connection, InProcessChannel
from runtime.wire import Frame, decode


@dataclass(frozen=True)
class Count:
    """What was sent.

    Attributes:
        messages: from the caller to workers; replies are none.
        out: bytes of their frames.
        back: bytes of the frames of replies.
        tensors: bytes of the tensors in both.
        peers: messages from one worker to another.
    """

    messages: int
    out: int
    back: int
    tensors: int
    peers: int = 0

    @property
    def bytes(self) -> int:
        return self.out + self.back


class Watched:
    """Workers of this process that are reached over channels which add up the tensors in their frames."""

    def __init__(self) -> None:
        self.tensors = 0
        self._workers: list[VirtualWorker] = []  # a worker is found by its peers while somebody holds it

    def worker(self, id: str) -> WorkerHandle:
        """A new worker."""
        virtual = VirtualWorker(id)
        self._workers.append(virtual)
        return WorkerHandle(id, Connection(_Channel(virtual, self), "me"))

    def count(self, work: Callable[[], Any]) -> Count:
        """What ``work`` sends."""
        before = self.tensors
        with count_messages() as sent:
            work()
        tensors = self.tensors - before
        return Count(sent.messages, sent.bytes_out, sent.bytes_in, tensors, sent.peer_messages)


class _Channel:
    """A channel to a worker in this process."""

    def __init__(self, virtual: VirtualWorker, watched: Watched) -> None:
        self._channel = InProcessChannel(virtual.worker)
        self._watched = watched

    def call(self, frame: Frame) -> bytearray:
        sent = frame if isinstance(frame, bytearray) else frame.join()
        tensors = sum(t.nbytes for t in decode(bytearray(sent))[1])
        reply = self._channel.call(sent)
        self._watched.tensors += tensors + sum(t.nbytes for t in decode(bytearray(reply))[1])
        return reply

    def close(self) -> None:
        self._channel.close()
