"""What gRPC needs of certificates and tokens, and who the peer of a call is.

Makes credentials from files and identities from calls; opens no port, no channel, and grants nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from cryptography import x509

from runtime.errors import CredentialsError
from runtime.identity import Identity, Role
from runtime.security import files
from runtime.security.identity import (
    check_valid,
    identity_of,
    identity_of_certificate,
    is_authority,
    parse_certificates,
    pinned_host,
    words,
)
from runtime.security.keys import check_match, parse_key
from runtime.security.tls import grpc
from runtime.security.tokens import TokenStore, check_token

TLS_VERSION = "TLSv1.3"

_BEARER = "bearer "


class Call(Protocol):
    """What is used here of gRPC's ``ServicerContext``."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]: ...

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate with its private key, read and checked.

    Attributes:
        chain: the certificate in PEM, and those that follow it in its file.
        key: the private key in PEM; in no representation of this object.
    """

    identity: Identity
    chain: bytes = field(repr=False)
    key: bytes = field(repr=False)


def load_pair(certificate: Path, key: Path) -> Pair:
    """Read a certificate and its key.

    Raises:
        CredentialsError: either is missing, unreadable or something else; the key may be read by others or is
            another certificate's; the certificate is not valid now, or nobody's. Says which file, what was
            expected, and what to do.
    """
    chain = files.read(certificate, "a certificate (PEM)")
    own = parse_certificates(chain, str(certificate))[0]
    if b"-----BEGIN" not in chain:
        raise CredentialsError(f"{certificate}: expected a certificate in PEM, found one in DER")
    try:
        identity = identity_of_certificate(own)
    except CredentialsError as error:
        raise CredentialsError(f"{certificate}: {error.message}") from None
    check_valid(own, str(certificate))
    private = files.read_private(key, "a private key (PEM)")
    check_match(own, certificate, parse_key(private, str(key)), key)
    return Pair(identity, chain, private)


def load_authorities(path: Path) -> bytes:
    """Read the certificates of one or more authorities, in PEM.

    Raises:
        CredentialsError: the file is missing, unreadable, has something else in it, or all have expired.
    """
    data = files.read(path, "an authority's certificate (ca.pem)")
    found = parse_certificates(data, str(path))
    if b"-----BEGIN" not in data or not all(map(is_authority, found)):
        raise CredentialsError(
            f"{path}: expected an authority's certificate (ca.pem of `planc certs init`), found another"
        )
    # While one authority takes over from another, both are there and the old one may have expired.
    check_valid(max(found, key=lambda each: each.not_valid_after_utc), str(path))
    return data


def server_credentials(certificate: Path, key: Path, client_ca: Path | None) -> grpc.ServerCredentials:
    """What a worker listens with: TLS 1.3.

    Args:
        certificate: the worker's own.
        key: its private key.
        client_ca: of the authority whose certificates clients must have. With None clients are asked for no
            certificate, and every call must be checked for its token: gRPC cannot ask for a certificate that
            may be left out, so clients with and without one need a port each.

    Raises:
        CredentialsError: see `load_pair` and `load_authorities`; or the certificate is a client's.
    """
    pair = load_pair(certificate, key)
    if pair.identity.role is not Role.WORKER:
        raise CredentialsError(
            f"{certificate}: expected a worker's certificate, found that of {words(pair.identity)}: "
            "make one with `planc certs issue worker NAME`"
        )
    authorities = None if client_ca is None else load_authorities(client_ca)
    return grpc.ssl_server_credentials(
        [(pair.key, pair.chain)], authorities, require_client_auth=authorities is not None
    )


def channel_credentials(
    ca: Path, certificate: Path | None = None, key: Path | None = None, token: str | None = None
) -> grpc.ChannelCredentials:
    """What a client, or a worker that calls another, connects with: a certificate, a token, or both.

    Args:
        ca: of the authority whose workers are trusted; no other is.
        certificate: the caller's own.
        key: its private key.
        token: sent with every call, over TLS only.

    Raises:
        CredentialsError: see `load_pair` and `load_authorities`; or there is nothing to show.
    """
    if (certificate is None) != (key is None):
        raise CredentialsError("a certificate and its private key are given together, or neither is")
    if certificate is None and token is None:
        raise CredentialsError("a worker wants to know who calls: give a certificate and its key, or a token")
    authorities = load_authorities(ca)
    if certificate is None or key is None:
        made = grpc.ssl_channel_credentials(authorities)
    else:
        pair = load_pair(certificate, key)
        made = grpc.ssl_channel_credentials(authorities, pair.key, pair.chain)
    if token is not None:
        if not (token.isascii() and token.isprintable()) or " " in token:
            raise CredentialsError("that is no token: expected one line, as `planc certs token` prints it")
        made = grpc.composite_channel_credentials(made, grpc.access_token_call_credentials(token))
    return made


def pinning_options(worker: str) -> list[tuple[str, str]]:
    """Options of a channel that hold it to one worker: the certificate of another fails in the handshake.

    Without them a channel holds to the host that it connects to, whoever of the collaboration runs there.
    """
    return [("grpc.ssl_target_name_override", pinned_host(worker))]


def check_transport(context: Call) -> None:
    """Refuse a call that came over anything but TLS 1.3.

    Raises:
        CredentialsError: it did.
    """
    auth = context.auth_context()
    kind, version = _one(auth, "transport_security_type"), _one(auth, "ssl_tls_version")
    if kind != "ssl" or version != TLS_VERSION:
        raise CredentialsError(
            f"expected a connection with {TLS_VERSION}, this one has {version or kind or 'no encryption'}"
        )


def identity_from_auth_context(context: Call, now: datetime | None = None) -> Identity:
    """Who calls, after the certificate that TLS has verified.

    Its authority is checked in the handshake, once; its validity here too, because connections last.

    Raises:
        CredentialsError: the call did not come over TLS 1.3, or with no certificate, or with one that is not
            valid now or is not exactly one client's or worker's.
    """
    check_transport(context)
    pem = _one(context.auth_context(), "x509_pem_cert")
    if not pem:
        raise CredentialsError("the call came without a certificate")
    certificate: x509.Certificate = parse_certificates(pem.encode(), "the caller's certificate")[0]
    check_valid(certificate, "the caller's certificate", now)
    return identity_of_certificate(certificate)


def identity_from_token(context: Call, store: TokenStore, now: datetime | None = None) -> Identity:
    """Who calls, after the token that came with the call.

    Raises:
        CredentialsError: the call did not come over TLS 1.3, or not with exactly one token that is good. One
            text for all of the latter: nothing can be probed.
    """
    check_transport(context)
    shown = [value for name, value in context.invocation_metadata() or () if name == "authorization"]
    if len(shown) == 1 and isinstance(shown[0], str) and shown[0].lower().startswith(_BEARER):
        found = check_token(store, shown[0][len(_BEARER) :], now)
        if found is not None:
            return found
    raise CredentialsError(
        "the call came without a token that is accepted here: ask the worker's owner for one"
    )


def _one(auth: Mapping[str, Iterable[bytes]], name: str) -> str:
    """The value of a property that is there once; "" where it is not."""
    values = list(auth.get(name, ()))
    return values[0].decode("utf-8", "replace") if len(values) == 1 else ""


__all__ = [
    "TLS_VERSION",
    "Call",
    "Identity",
    "Pair",
    "Role",
    "channel_credentials",
    "check_transport",
    "identity_from_auth_context",
    "identity_from_token",
    "identity_of",
    "load_authorities",
    "load_pair",
    "pinning_options",
    "server_credentials",
]
