"""Who a certificate says that its holder is: one URI `planc://ROLE/NAME` among its alternative names.

Reads certificates and says whose they are. Whether an authority vouches for one is TLS's to check, and what
its holder may do is the policy's.
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from runtime.errors import CredentialsError
from runtime.identity import NAME, Identity, Role, check_name

_URI = re.compile(rf"planc://(client|worker)/({NAME})")

# What the library raises for bytes that are no certificate.
_DAMAGED = (
    ValueError,
    TypeError,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    UnsupportedAlgorithm,
)

PINNED_DOMAIN = "worker.planc.invalid"
"""Below it are the DNS names that stand for workers themselves; `.invalid` is reserved for no one."""


def words(identity: Identity) -> str:
    """As people read it: role and name."""
    return f"{identity.role} {identity.name}"


def uri_of(identity: Identity) -> str:
    """How a certificate says it.

    Raises:
        CredentialsError: it cannot: a name with other characters, or an owner, whom nothing that comes over a
            network makes.
    """
    if identity.role is Role.OWNER:
        raise CredentialsError("no certificate makes an owner: issue one to a worker or a client")
    return f"planc://{identity.role}/{check_name(identity.name)}"


def pinned_host(worker: str) -> str:
    """The DNS name in a worker's certificate that stands for the worker itself, wherever it runs.

    gRPC compares DNS names without case and knows no URIs, so it is a hash: 'bob' and 'Bob' differ.
    """
    return f"{hashlib.sha256(check_name(worker).encode()).hexdigest()[:32]}.{PINNED_DOMAIN}"


def parse_certificates(data: bytes, where: str) -> list[x509.Certificate]:
    """The certificates in PEM or DER bytes, one or more; the first is the holder's own.

    Raises:
        CredentialsError: there are none; ``where`` begins its text.
    """
    try:
        if b"-----BEGIN" in data:
            found = x509.load_pem_x509_certificates(data)
        else:
            found = [x509.load_der_x509_certificate(data)]
        for each in found:
            _read_wholly(each)
        return found
    except _DAMAGED:
        kind = "a private key" if b"PRIVATE KEY-----" in data else "something else"
        raise CredentialsError(f"{where}: expected a certificate (PEM or DER), found {kind}") from None


def _read_wholly(certificate: x509.Certificate) -> tuple[object, ...]:
    """Read the parts that are otherwise read when they are first used, so that damage shows at once."""
    return (
        certificate.extensions,
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        certificate.issuer,
        certificate.subject,
        certificate.public_key(),
    )


def identity_of(data: bytes) -> Identity:
    """Whose certificate this is (PEM or DER; of a chain, the first).

    Raises:
        CredentialsError: it is no certificate, or not exactly one client or worker.
    """
    return identity_of_certificate(parse_certificates(data, "certificate")[0])


def identity_of_certificate(certificate: x509.Certificate) -> Identity:
    """Whose certificate this is.

    Raises:
        CredentialsError: it names no planc identity, several, or one of a role that certificates do not give.
    """
    uris = [u for u in _uris(certificate) if u.lower().startswith("planc:")]
    if len(uris) != 1:
        raise CredentialsError(
            f"a certificate must have exactly one name of the form planc://ROLE/NAME, this has {len(uris)}: "
            "make it with `planc certs issue`"
        )
    found = _URI.fullmatch(uris[0])
    if found is None:
        raise CredentialsError(
            f"a certificate's name must be planc://client/NAME or planc://worker/NAME, not {uris[0][:120]!r}"
        )
    if is_authority(certificate):
        raise CredentialsError(f"the certificate of an authority cannot be that of {found[1]} {found[2]} too")
    return Identity(found[2], Role(found[1]))


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def is_authority(certificate: x509.Certificate) -> bool:
    """Whether the certificate is one that may sign others."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def hosts_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """The DNS names and IP addresses that a certificate holds for, without the pinned one."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    dns = [n for n in names.get_values_for_type(x509.DNSName) if not n.endswith(f".{PINNED_DOMAIN}")]
    return (*dns, *(str(address) for address in names.get_values_for_type(x509.IPAddress)))


def check_valid(certificate: x509.Certificate, where: str, now: datetime | None = None) -> None:
    """Refuse a certificate that is not valid at this moment.

    Raises:
        CredentialsError: it is not yet, or no longer; ``where`` begins its text.
    """
    now = now or datetime.now(UTC)
    before, after = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > after:
        raise CredentialsError(
            f"{where}: the certificate expired at {moment(after)}: have its authority issue a new one "
            "(`planc certs issue ... --renew`)"
        )
    if now < before:
        raise CredentialsError(
            f"{where}: the certificate is valid only from {moment(before)}, and here it is {moment(now)}: "
            "compare the clocks of both machines"
        )


def moment(time: datetime) -> str:
    """A time as people read it, in UTC."""
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


__all__ = [
    "PINNED_DOMAIN",
    "check_valid",
    "hosts_of",
    "identity_of",
    "identity_of_certificate",
    "is_authority",
    "moment",
    "parse_certificates",
    "pinned_host",
    "uri_of",
    "words",
]
