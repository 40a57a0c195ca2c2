"""Who opens a stream: by certificate, by token, by being the owner, or by their own word."""

from __future__ import annotations

from typing import Any

from runtime.channels.grpc import chunks
from runtime.channels.grpc.server import Authenticate
from runtime.errors import CredentialsError
from runtime.identity import OWNER_NAME, Identity, Role
from runtime.security import credentials
from runtime.security.identity import check_name
from runtime.security.tokens import TokenStore

OWNER = Identity(OWNER_NAME, Role.OWNER)


def by_certificate(context: Any) -> Identity:
    """Who has the certificate that TLS has verified."""
    return credentials.identity_from_auth_context(context)


def by_token(store: TokenStore) -> Authenticate:
    """Who has a token of a store."""
    return lambda context: credentials.identity_from_token(context, store)


def owner(_context: Any) -> Identity:
    """The owner: for a unix socket that only they can open."""
    return OWNER


def by_their_word(context: Any) -> Identity:
    """Whoever the caller says: for one machine, where all who can connect are trusted. Nobody is the owner.

    Raises:
        CredentialsError: they say nothing that could be a name.
    """
    said = dict(context.invocation_metadata())
    name, role = said.get(chunks.CLIENT_KEY, ""), said.get(chunks.ROLE_KEY, "")
    if role not in (Role.CLIENT, Role.WORKER):
        raise CredentialsError("the caller says neither that it is a client nor that it is a worker")
    return Identity(check_name(str(name)), Role(role))
