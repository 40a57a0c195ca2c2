"""A small certificate authority for one collaboration, and what it issues to workers and clients.

Works on files alone, with no network and no database. What it issues is short-lived, so it keeps no list of
what it revoked: somebody who leaves is barred by the owners' policies, and their certificate runs out.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from runtime.errors import CredentialsError
from runtime.identity import Identity, Role, check_name
from runtime.security import files
from runtime.security.identity import (
    PINNED_DOMAIN,
    check_valid,
    hosts_of,
    identity_of_certificate,
    is_authority,
    parse_certificates,
    pinned_host,
    uri_of,
    words,
)
from runtime.security.keys import check_match, parse_key

CERTIFICATE, KEY = "ca.pem", "ca.key"

LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
"""The hosts of a worker's certificate where none are given: this machine only."""

# Clocks differ: without this, what is issued here would not be valid elsewhere for a moment.
_BACKDATE = timedelta(minutes=5)
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DNS = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*")


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its key, as files.

    Attributes:
        expires: the last moment of its validity, in UTC.
        hosts: the DNS names and addresses that a worker's certificate holds for; none for a client's.
    """

    identity: Identity
    certificate: Path
    key: Path
    expires: datetime
    hosts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Authority:
    """An authority: the folder of its files, its certificate, and the key that signs."""

    folder: Path
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def create(cls, folder: Path, name: str, days: int) -> Authority:
        """Make an authority: `ca.pem` for everyone, `ca.key` for nobody else.

        Args:
            folder: where its files go; made, with mode 0700, if it is not there.
            name: of the collaboration, 1 to 64 printable characters; shown to people, checked by no one.
            days: how long it is valid.

        Raises:
            CredentialsError: there is an authority already, or a name or number that cannot be.
            OSError: a file cannot be written.
        """
        if not (0 < len(name) <= 64 and name.isprintable() and name.strip()):
            raise CredentialsError(
                f"{name[:80]!r} cannot name a collaboration: expected 1 to 64 printable characters"
            )
        now = datetime.now(UTC)
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            _builder(subject, subject, key.public_key(), now, _days(now, days))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        files.make_folder(folder)
        if (folder / CERTIFICATE).exists():  # before its key is written, which then would have to go again
            raise CredentialsError(f"{folder / CERTIFICATE} is there already, and is not overwritten")
        _create_pair(folder / CERTIFICATE, certificate, folder / KEY, key)
        return cls(folder, certificate, key)

    @classmethod
    def open(cls, folder: Path) -> Authority:
        """The authority whose files are in a folder.

        Raises:
            CredentialsError: there is none, its files do not fit together, or it has expired.
        """
        path = folder / CERTIFICATE
        if not path.exists():
            raise CredentialsError(
                f"{path}: no such file; make an authority with `planc certs init --dir {folder}`"
            )
        certificate = parse_certificates(files.read(path, "an authority's certificate"), str(path))[0]
        if not is_authority(certificate):
            raise CredentialsError(f"{path}: expected an authority's certificate, found one that signs none")
        check_valid(certificate, str(path))
        key = parse_key(files.read_private(folder / KEY, "an authority's private key"), str(folder / KEY))
        check_match(certificate, path, key, folder / KEY)
        return cls(folder, certificate, key)

    def issue(
        self, identity: Identity, hosts: Sequence[str] = (), days: int = 90, renew: bool = False
    ) -> Issued:
        """Issue a certificate, as `ROLE-NAME.pem` and `ROLE-NAME.key` in the authority's folder.

        Args:
            identity: whose it is: a worker's or a client's.
            hosts: DNS names and IP addresses at which a worker is reached; this machine's own where there are
                none. A client has none.
            days: how long it is valid; at most as long as the authority is.
            renew: replace the certificate that is there, with the same key (so that key and certificate fit
                together at every moment) and, where no hosts are given, the same hosts.

        Raises:
            CredentialsError: a name or host that cannot be, a file that is there already, or none to renew.
            OSError: a file cannot be written.
        """
        check_name(identity.name)  # it becomes part of a path
        path, key_path = (self.folder / f"{identity.role}-{identity.name}.{end}" for end in ("pem", "key"))
        now = datetime.now(UTC)
        after = min(_days(now, days), self.certificate.not_valid_after_utc)
        if renew:
            old = parse_certificates(files.read(path, "the certificate to renew"), str(path))[0]
            key = parse_key(files.read_private(key_path, "its private key"), str(key_path))
            check_match(old, path, key, key_path)
            if identity_of_certificate(old) != identity:
                raise CredentialsError(
                    f"{path}: expected the certificate of {words(identity)}, found that of "
                    f"{words(identity_of_certificate(old))}"
                )
            certificate = self.sign(key.public_key(), identity, hosts or hosts_of(old), now, after)
            files.replace(path, certificate.public_bytes(Encoding.PEM), files.PUBLIC)
        else:
            key = ec.generate_private_key(ec.SECP256R1())
            certificate = self.sign(key.public_key(), identity, hosts, now, after)
            if path.exists():
                raise CredentialsError(
                    f"{path} is there already, and is not overwritten; "
                    "--renew replaces a certificate and keeps its key"
                )
            _create_pair(path, certificate, key_path, key)
        return Issued(identity, path, key_path, certificate.not_valid_after_utc, hosts_of(certificate))

    def sign(
        self,
        key: ec.EllipticCurvePublicKey,
        identity: Identity,
        hosts: Sequence[str],
        begins: datetime,
        ends: datetime,
    ) -> x509.Certificate:
        """A certificate, signed; no file is written. `issue` says what the arguments are."""
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri_of(identity))]
        if identity.role is Role.CLIENT and hosts:
            raise CredentialsError("a client's certificate holds for no host: only workers are connected to")
        purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if identity.role is Role.WORKER:
            names += [_host(host) for host in hosts or LOOPBACK]
            names.append(x509.DNSName(pinned_host(identity.name)))
            purposes.insert(0, ExtendedKeyUsageOID.SERVER_AUTH)  # it is a client of its peers, too
        authority_id = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.name)])
        return (
            _builder(subject, self.certificate.subject, key, begins, ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority_id), critical=False
            )
            .sign(self.key, hashes.SHA256())
        )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    begins: datetime,
    ends: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins - _BACKDATE)
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _days(now: datetime, days: int) -> datetime:
    if not 0 < days <= 36_500:
        raise CredentialsError(f"a certificate is valid for 1 to 36500 days, not {days}")
    return now + timedelta(days=days)


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    last = host.rpartition(".")[2]
    # All digits at the end is an address with a mistake in it, never a name of the DNS.
    if not _DNS.fullmatch(host) or last.isdigit():
        raise CredentialsError(
            f"{host[:80]!r} is no host: expected a DNS name such as data.example.org, without a port, "
            "or an IP address"
        )
    if host.lower().endswith(PINNED_DOMAIN):
        raise CredentialsError(f"{host!r}: names in {PINNED_DOMAIN} stand for workers, and cannot be given")
    return x509.DNSName(host)


def _create_pair(
    path: Path, certificate: x509.Certificate, key_path: Path, key: ec.EllipticCurvePrivateKey
) -> None:
    """Write both or neither. The key comes first: what others look for is the certificate."""
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    files.create(key_path, pem, files.PRIVATE)
    try:
        files.create(path, certificate.public_bytes(Encoding.PEM), files.PUBLIC)
    except BaseException:
        key_path.unlink()
        raise


__all__ = ["CERTIFICATE", "KEY", "LOOPBACK", "Authority", "Issued"]
