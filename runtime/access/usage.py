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

    seconds: float = 0.0
    running: int = 0
    requests: int = 0
    refused: int = 0
    sessions: set[int] = field(default_factory=set[int])


@dataclass(slots=True)
class Usage:
    """What all clients have taken, by name."""

    clients: OrderedDict[str, Taken] = field(default_factory=OrderedDict[str, Taken])

    def of(self, client: str) -> Taken:
        """What a client has taken; new ones took nothing."""
        taken = self.clients.get(client)
        if taken is None:
            taken = self.clients[client] = Taken()
            if len(self.clients) > _CLIENTS:
                # Whoever took least loses least: those who spent a quota are not forgotten for new names.
                idle = [name for name, t in self.clients.items() if not t.running and name != client]
                del self.clients[min(idle, key=lambda name: self.clients[name].seconds, default=client)]
        return taken

    def enter(self, client: str, session: int) -> None:
        """A request came."""
        taken = self.of(client)
        taken.requests += 1
        if len(taken.sessions) < _SESSIONS:
            taken.sessions.add(session)

    def check_seconds(self, client: str, quota: Quota) -> None:
        """Refuse to compute for a client whose time is over.

        Raises:
            QuotaExceeded: it is.
        """
        if quota.seconds is not None and (spent := self.of(client).seconds) >= quota.seconds:
            raise QuotaExceeded(
                f"{client!r} has computed {spent:.1f} of at most {quota.seconds:g} seconds here; ask the "
                "worker's owner for more (quota.seconds)"
            )

    def seconds_for_run(self, client: str, quota: Quota) -> float | None:
        """The seconds that a run may take; None for no limit."""
        if quota.seconds is None:
            return quota.run_seconds
        left = max(quota.seconds - self.of(client).seconds, 0.0)
        return left if quota.run_seconds is None else min(left, quota.run_seconds)

    def check_runs(self, client: str, quota: Quota) -> Taken:
        """Refuse one run more than a client may have at a time.

        Raises:
            QuotaExceeded: as many as the client may run at a time are running.
        """
        taken = self.of(client)
        if quota.concurrent_runs is not None and taken.running >= quota.concurrent_runs:
            raise QuotaExceeded(
                f"{client!r} runs {taken.running} plans of at most {quota.concurrent_runs} at a time: "
                "wait for one to end, or ask the worker's owner for more (quota.concurrent_runs)"
            )
        return taken

    @contextmanager
    def running(self, client: str, quota: Quota) -> Generator[None]:
        """Count a run while it lasts.

        Raises:
            QuotaExceeded: as `check_runs`.
        """
        taken = self.check_runs(client, quota)
        taken.running += 1
        try:
            yield
        finally:
            taken.running -= 1


__all__ = ["Taken", "Usage"]
