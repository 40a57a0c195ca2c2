"""What a worker accepts and keeps. Defaults for everything."""

from __future__ import annotations

from dataclasses import dataclass, field

from planc.limits import Limits
from runtime.executor import RunBounds
from runtime.wire import WireLimits


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """What a worker accepts and keeps."""

    wire: WireLimits = field(default_factory=WireLimits)
    plan: Limits = field(default_factory=Limits)
    store_bytes: int = 64 * 2**30
    """Bytes of all objects."""
    run: RunBounds = field(default_factory=RunBounds)
    """Memory and work that one run of a plan may take; estimated before it starts."""
    concurrent_runs: int = 4
    """Plans that run at a time; more wait."""
    plans: int = 1024
    """Installed plans."""
    plan_bytes: int = 4 * 2**30
    """Bytes of all installed plans and their constants."""
    executable_bytes: int = 2**30
    """Bytes that compiled executables keep between runs."""
    replay_window: int = 1024
    """Requests of a session whose replies are remembered."""
    replay_bytes: int = 256 * 2**20
    """Bytes of the replies that are remembered for a session."""
    sessions: int = 64
    """Sessions of a client whose replies are remembered."""
    clients: int = 4096
    """Clients whose replies are remembered."""
