"""Who connects to a unix socket: its owner, or whoever they say that they are."""

from __future__ import annotations

from runtime.channels.streams.callers import named
from runtime.channels.unix.framing import Greeting
from runtime.identity import OWNER_NAME, Identity, Role

OWNER = Identity(OWNER_NAME, Role.OWNER)


def owner(_said: Greeting) -> Identity:
    """The owner: for a socket that only they can open."""
    return OWNER


def by_their_word(said: Greeting) -> Identity:
    """Whoever the caller says.

    Raises:
        CredentialsError: they say nothing that could be a name.
    """
    return named(said.client, said.role)
