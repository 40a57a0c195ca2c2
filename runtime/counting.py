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
        thread: whose messages are counted; 0 for those of all threads.
    """

    messages: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    by_kind: Counter[str] = field(default_factory=Counter[str])
    peer_messages: int = 0
    peer_bytes: int = 0
    thread: int = 0


_lock = threading.Lock()
_active: list[Sent] = []


@contextmanager
def count_messages() -> Generator[Sent]:
    """Count what is sent within the block. Blocks nest; each counts all that happens within it."""
    with _counting(Sent()) as sent:
        yield sent


@contextmanager
def count_own_messages() -> Generator[Sent]:
    """As `count_messages`, but only what this thread sends, and others report to it."""
    with _counting(Sent(thread=threading.get_ident())) as sent:
        yield sent


@contextmanager
def _counting(sent: Sent) -> Generator[Sent]:
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
    here = threading.get_ident()
    with _lock:
        for sent in _active:
            if sent.thread not in (0, here):
                continue
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
    here = threading.get_ident()
    with _lock:
        for sent in _active:
            if sent.thread in (0, here):
                sent.bytes_in += nbytes


def count_for_this_thread(sent: Sent) -> None:
    """Report what other threads sent on behalf of this one: `count_own_messages` has it then too."""
    if not _active:
        return
    here = threading.get_ident()
    with _lock:
        for own in _active:
            if own.thread == here:
                own.messages += sent.messages
                own.bytes_out += sent.bytes_out
                own.bytes_in += sent.bytes_in
                own.by_kind += sent.by_kind
                own.peer_messages += sent.peer_messages
                own.peer_bytes += sent.peer_bytes
