"""Who sends a request, as its channel vouches for it. What they may do is `policy`'s."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from runtime.errors import CredentialsError

# No slash, space or control character: a name is safe in a URI, a file name, a log line and a policy file.
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


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


def check_name(name: str) -> str:
    """The name, if it may be one.

    Raises:
        CredentialsError: it may not; the text says what is expected.
    """
    if not re.fullmatch(NAME, name):
        raise CredentialsError(
            f"{name[:80]!r} cannot be a name: expected 1 to 64 letters, digits, '.', '_' or '-', "
            "beginning with a letter or digit"
        )
    if name == OWNER_NAME:
        raise CredentialsError(f"{name!r} is what a worker calls its owner: expected another name")
    return name
