"""One thread that looks at the deadlines of all channels: reading a stream cannot time out itself."""

from __future__ import annotations

import threading
import time
import weakref
from typing import Protocol

TICK = 0.25
"""Seconds between looks."""


class Watched(Protocol):
    """What has deadlines."""

    def give_up_late(self, now: float) -> None:
        """Give up what is past its deadline."""
        ...


_watched: weakref.WeakSet[Watched] = weakref.WeakSet()
_watching = threading.Lock()
_watcher: threading.Thread | None = None


def watch(channel: Watched) -> None:
    """Look at the deadlines of a channel from now on, as long as somebody holds it."""
    global _watcher
    with _watching:
        _watched.add(channel)
        if _watcher is None or not _watcher.is_alive():
            _watcher = threading.Thread(target=_look, name="planc-deadlines", daemon=True)
            _watcher.start()


def _look() -> None:
    while True:
        time.sleep(TICK)
        with _watching:
            channels = list(_watched)
        now = time.monotonic()
        for channel in channels:
            channel.give_up_late(now)
