"""The one thread that frees what was given up where no message goes out to take the releases along.

It knows connections only, weakly, and sends nothing on one that is in use. A busy program never needs it.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import threading
import time
import weakref
from dataclasses import dataclass

from planc.errors import PlancError
from runtime.channels.base import Connection
from runtime.messages import Free

IDLE = 30.0
"""Seconds: long beside the pauses of a training loop, short beside those of somebody at a notebook."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Seen:
    """What a connection had sent when it was looked at last, and since when that is all."""

    sent: int
    since: float


class Releaser:
    """Sends an empty Free, which takes the releases along, on connections that were idle for a while.

    Args:
        idle: how many seconds; may be set at any time, None for never.
    """

    def __init__(self, idle: float | None = IDLE) -> None:
        self._connections: weakref.WeakKeyDictionary[Connection, _Seen] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._idle = idle

    @property
    def idle(self) -> float | None:
        return self._idle

    @idle.setter
    def idle(self, seconds: float | None) -> None:
        self._idle = seconds
        self._wake.set()

    def watch(self, connection: Connection) -> None:
        """Look after a connection for as long as it lives."""
        with self._lock:
            self._connections[connection] = _Seen(connection.sent, time.monotonic())
            # Asked each time: a forked process has the object, but not the thread.
            if not self._stopped and (self._thread is None or not self._thread.is_alive()):
                self._thread = threading.Thread(target=self._run, name="planc-releases", daemon=True)
                self._thread.start()

    def forget(self, connection: Connection) -> None:
        """No longer look after a connection: it is closed."""
        with self._lock:
            self._connections.pop(connection, None)

    def stop(self) -> None:
        """Let the thread end, and wait a moment for it; a message on its way is not waited for any longer."""
        self._stopped = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=0.2)

    def sweep(self, now: float) -> None:
        """Send what is due at a time of the monotonic clock."""
        with self._lock:
            seen = list(self._connections.items())
        for connection, last in seen:
            if connection.sent != last.sent or connection.busy or not connection.pending_releases:
                last.sent, last.since = connection.sent, now
            elif self._idle is not None and now - last.since >= self._idle:
                last.since = now  # where it fails: not again at once
                with contextlib.suppress(PlancError):
                    connection.post(Free(()))

    def _run(self) -> None:
        while not self._stopped:
            idle = self._idle
            self._wake.wait(None if idle is None else max(idle / 4, 0.005))
            self._wake.clear()
            try:
                self.sweep(time.monotonic())
            except Exception:  # a broken channel must not end the service of the others
                _log.exception("releasing failed")


RELEASER = Releaser()
"""The one that all worker handles share. ``RELEASER.idle`` may be set."""
atexit.register(RELEASER.stop)

__all__ = ["IDLE", "RELEASER", "Releaser"]
