"""What each client has taken since the worker started: time, runs, sessions. Bytes are `accounts`'.

Not thread-safe by itself: the worker has the lock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from runtime.errors import QuotaExceeded
from runtime.policy import Quota

_CLIENTS = 4096
_SESSIONS = 1024
"""Remembered; more are not told apart."""


@dataclass(slots=True)
class Taken:
    """What one client has taken."""

    client: str = ""
    seconds: float = 0.0
    running: int = 0
    requests: int = 0
    refused: int = 0
    sessions: set[int] = field(default_factory=set[int])

    def require_time(self, quota: Quota) -> None:
        """Refuse to compute for a client whose time is over.

        Raises:
            QuotaExceeded: it is.
        """
        if quota.seconds is not None and self.seconds >= quota.seconds:
            raise QuotaExceeded(
                f"{self.client!r} has computed {self.seconds:.1f} of at most {quota.seconds:g} seconds here; "
                "ask the worker's owner for more (quota.seconds)"
            )

    def time_for_run(self, quota: Quota) -> float | None:
        """The seconds that a run may take; None for no limit."""
        if quota.seconds is None:
            return quota.run_seconds
        left = max(quota.seconds - self.seconds, 0.0)
        return left if quota.run_seconds is None else min(left, quota.run_seconds)

    def require_run(self, quota: Quota) -> None:
        """Refuse one run more than a client may have at a time.

        Raises:
            QuotaExceeded: as many as the client may run at a time are running.
        """
        if quota.concurrent_runs is not None and self.running >= quota.concurrent_runs:
            raise QuotaExceeded(
                f"{self.client!r} runs {self.running} plans of at most {quota.concurrent_runs} at a time: "
                "wait for one to end, or ask the worker's owner for more (quota.concurrent_runs)"
            )

    @contextmanager
    def run(self, quota: Quota) -> Generator[None]:
        """Count a run while it lasts.

        Raises:
            QuotaExceeded: as `require_run`.
        """
        self.require_run(quota)
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1


@dataclass(slots=True)
class Usage:
    """What all clients have taken, by name."""

    clients: OrderedDict[str, Taken] = field(default_factory=OrderedDict[str, Taken])

    def of(self, client: str) -> Taken:
        """What a client has taken; new ones took nothing."""
        taken = self.clients.get(client)
        if taken is None:
            taken = self.clients[client] = Taken(client)
            if len(self.clients) > _CLIENTS:
                # Whoever took least loses least: those who spent a quota are not forgotten for new names.
                idle = [name for name, t in self.clients.items() if not t.running and name != client]
                del self.clients[min(idle, key=lambda name: self.clients[name].seconds, default=client)]
        return taken

    def enter(self, client: str, session: int) -> Taken:
        """A request came: what its client has taken."""
        taken = self.of(client)
        taken.requests += 1
        if len(taken.sessions) < _SESSIONS:
            taken.sessions.add(session)
        return taken


__all__ = ["Taken", "Usage"]
