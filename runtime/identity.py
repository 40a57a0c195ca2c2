"""Who sends a request, as its channel vouches for it. What they may do is `policy`'s."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What somebody is to a worker."""

    CLIENT = "client"
    WORKER = "worker"
    """A peer: it may bring objects in the name of their owners."""
    OWNER = "owner"
    """The owner of the worker and its data, at its own machine."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A name that a channel vouches for: by a certificate, a token, or because both ends are one process."""

    name: str
    role: Role = Role.CLIENT


OWNER_NAME = "owner"
"""Under which a worker keeps what its owner does; no client and no worker has it."""
