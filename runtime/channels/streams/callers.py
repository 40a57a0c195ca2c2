"""Who calls, where nothing but their own word says it."""

from __future__ import annotations

from runtime.errors import CredentialsError
from runtime.identity import Identity, Role, check_name


def named(name: str, role: str) -> Identity:
    """Whoever the caller says: for one machine, where all who can connect are trusted. Nobody is the owner.

    Raises:
        CredentialsError: they say nothing that could be a name.
    """
    if role not in (Role.CLIENT, Role.WORKER):
        raise CredentialsError("the caller says neither that it is a client nor that it is a worker")
    return Identity(check_name(name), Role(role))
