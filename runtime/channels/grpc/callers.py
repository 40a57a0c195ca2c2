"""Who opens a gRPC stream: by certificate, by token, or by their own word."""

from __future__ import annotations

from typing import Any

from runtime.channels.grpc import chunks
from runtime.channels.grpc.server import Authenticate
from runtime.channels.streams.callers import named
from runtime.identity import Identity
from runtime.security import credentials
from runtime.security.tokens import TokenStore


def by_certificate(context: Any) -> Identity:
    """Who has the certificate that TLS has verified."""
    return credentials.identity_from_auth_context(context)


def by_token(store: TokenStore) -> Authenticate:
    """Who has a token of a store."""
    return lambda context: credentials.identity_from_token(context, store)


def by_their_word(context: Any) -> Identity:
    """Whoever the caller says: for one machine, where all who can connect are trusted. Nobody is the owner.

    Raises:
        CredentialsError: they say nothing that could be a name.
    """
    said = dict(context.invocation_metadata())
    return named(str(said.get(chunks.CLIENT_KEY, "")), str(said.get(chunks.ROLE_KEY, "")))
