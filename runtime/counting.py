"""Counts the messages that this process sends: `count_messages`.

Connections report here; replies are no messages. Nothing is counted while nobody asks.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Sent:
    """What was sent while a `count_messages` block ran, by all threads.

    Attributes:
        messages: requests from callers to workers.
        bytes_out: the bytes of their frames.
        bytes_in: the bytes of the frames that came back.
        by_kind: how many there were of each message, those between workers included, by name ("Run").
        peer_messages: requests from one worker to another, in this process.
        peer_bytes: the bytes of their frames.
    """

    messages: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    by_kind: Counter[str] = field(default_factory=Counter[str])
    peer_messages: int = 0
    peer_bytes: int = 0


_lock = threading.Lock()
_active: list[Sent] = []


@contextmanager
def count_messages() -> Generator[Sent]:
    """Count what is sent within the block. Blocks nest; each counts all that happens within it."""
    sent = Sent()
    with _lock:
        _active.append(sent)
    try:
        yield sent
    finally:
        with _lock:
            _active.remove(sent)


def count_request(kind: str, nbytes: int, *, peer: bool) -> None:
    """Report a request that is about to be sent."""
    if not _active:
        return
    with _lock:
        for sent in _active:
            sent.by_kind[kind] += 1
            if peer:
                sent.peer_messages += 1
                sent.peer_bytes += nbytes
            else:
                sent.messages += 1
                sent.bytes_out += nbytes


def count_reply(nbytes: int, *, peer: bool) -> None:
    """Report a reply that came."""
    if peer or not _active:
        return
    with _lock:
        for sent in _active:
            sent.bytes_in += nbytes
