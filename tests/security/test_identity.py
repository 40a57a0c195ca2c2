"""Whose a certificate is: it has one planc name, of a role that certificates give. Any other is nobody's."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import product
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from runtime.errors import CredentialsError
from runtime.identity import Identity, Role
from runtime.security.authority import Authority
from runtime.security.credentials import identity_from_auth_context, identity_of
from runtime.security.identity import check_valid, hosts_of, parse_certificates, pinned_host
from tests.security.helpers import DAY

KEY = ec.generate_private_key(ec.SECP256R1())
NOW = datetime.now(UTC)


def uri(text: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(text)


def certificate(*names: x509.GeneralName, ca: bool = False, encoding: Encoding = Encoding.PEM) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ann")])  # says nothing
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .add_extension(x509.BasicConstraints(ca, None), True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(encoding)


@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
def test_one_name_is_an_identity(encoding: Encoding) -> None:
    made = certificate(
        x509.DNSName("x.org"), uri("https://x.org/y"), uri("planc://worker/bob"), encoding=encoding
    )
    assert identity_of(made) == Identity("bob", Role.WORKER)


def test_of_a_chain_the_first_counts(authority: Authority) -> None:
    ann = authority.issue(Identity("ann", Role.CLIENT)).certificate.read_bytes()
    bob = authority.issue(Identity("bob", Role.WORKER)).certificate.read_bytes()
    assert identity_of(ann + bob) == Identity("ann", Role.CLIENT)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], "this has 0"),
        (["https://x.org"], "this has 0"),
        (["planc://client/ann", "planc://client/eve"], "this has 2"),
        (["planc://client/ann", "planc://client/ann"], "this has 2"),
        (["planc://client/ann", "PLANC://worker/ann"], "this has 2"),
        (["planc://client/ann", "planc:x"], "this has 2"),
        (["planc://owner/ann"], "not 'planc://owner/ann'"),
        (["planc://Client/ann"], "not"),
        (["PLANC://client/ann"], "not"),
        (["planc://client/"], "not"),
        (["planc://client/ann/"], "not"),
        (["planc://client/ann\n"], "not"),
        (["planc://client/ann?x=1"], "not"),
        (["planc://client/ann#x"], "not"),
        (["planc://client/../worker/bob"], "not"),
        (["planc://client/a%6en"], "not"),
        (["planc://client:443/ann"], "not"),
        (["planc://x@client/ann"], "not"),
        (["planc:///client/ann"], "not"),
        (["planc://client/" + "a" * 65], "not"),
        (["xplanc://client/ann"], "this has 0"),
    ],
)
def test_what_is_nobodys(names: list[str], text: str) -> None:
    with pytest.raises(CredentialsError, match=text):
        identity_of(certificate(*map(uri, names)))


def test_an_authoritys_certificate_is_nobodys() -> None:
    with pytest.raises(CredentialsError, match="certificate of an authority"):
        identity_of(certificate(uri("planc://client/ann"), ca=True))


@pytest.mark.parametrize(
    "data", [b"", b"x", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_what_is_no_certificate(data: bytes) -> None:
    with pytest.raises(CredentialsError, match="expected a certificate"):
        identity_of(data)


# In bytes that are damaged the library finds things that it will refuse one day, and says so.
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_damaged_certificates_are_refused_or_read() -> None:
    """Whatever is broken, a typed error or an identity comes out, never another exception."""
    whole = certificate(uri("planc://client/ann"), encoding=Encoding.DER)
    for position, flip in product(range(len(whole)), (0x01, 0x41, 0xFF)):
        damaged = whole[:position] + bytes([whole[position] ^ flip]) + whole[position + 1 :]
        try:
            identity_of(damaged)
            (parsed,) = parse_certificates(damaged, "damaged")
            check_valid(parsed, "damaged", NOW)
            hosts_of(parsed)
        except CredentialsError:
            continue
    for length in range(0, len(whole), 7):
        with pytest.raises(CredentialsError):
            identity_of(whole[:length])


def test_pinned_hosts_differ_where_names_differ_in_case_only() -> None:
    assert pinned_host("bob") == pinned_host("bob")
    assert len({pinned_host(name).lower() for name in ("bob", "Bob", "BOB", "bob.", "b")}) == 5


class Call:
    """As much of gRPC's context as is used."""

    def __init__(self, **auth: Any) -> None:
        good = {
            "transport_security_type": [b"ssl"],
            "ssl_tls_version": [b"TLSv1.3"],
            "x509_pem_cert": [certificate(uri("planc://client/ann"))],
        }
        self.auth = {name: value for name, value in {**good, **auth}.items() if value is not None}

    def auth_context(self) -> Any:
        return self.auth

    def invocation_metadata(self) -> Any:
        return ()


def test_a_call_with_a_verified_certificate_has_an_identity() -> None:
    assert identity_from_auth_context(Call()) == Identity("ann", Role.CLIENT)


@pytest.mark.parametrize(
    ("auth", "text"),
    [
        ({"transport_security_type": None}, "expected a connection with TLSv1.3"),
        ({"transport_security_type": [b"local"]}, "expected a connection with TLSv1.3"),
        ({"transport_security_type": [b"ssl", b"ssl"]}, "expected a connection with TLSv1.3"),
        ({"ssl_tls_version": [b"TLSv1.2"]}, "this one has TLSv1.2"),
        ({"ssl_tls_version": None}, "this one has ssl"),
        ({"x509_pem_cert": None}, "without a certificate"),
        ({"x509_pem_cert": [b""]}, "without a certificate"),
        ({"x509_pem_cert": [certificate(uri("planc://client/ann"))] * 2}, "without a certificate"),
        ({"x509_pem_cert": [b"x"]}, "expected a certificate"),
        ({"x509_pem_cert": [b"\xff\xfe"]}, "expected a certificate"),
        ({"x509_pem_cert": [certificate(uri("planc://owner/ann"))]}, "planc://owner/ann"),
        ({"x509_pem_cert": [certificate(x509.DNSName("ann"))]}, "this has 0"),
    ],
)
def test_any_other_call_has_none(auth: dict[str, Any], text: str) -> None:
    with pytest.raises(CredentialsError, match=text):
        identity_from_auth_context(Call(**auth))


def test_a_certificate_is_good_from_its_first_moment_to_its_last() -> None:
    begin, end = (NOW + sign * DAY for sign in (-1, 1))
    begin, end = begin.replace(microsecond=0), end.replace(microsecond=0)
    assert identity_from_auth_context(Call(), begin) == identity_from_auth_context(Call(), end)
    with pytest.raises(CredentialsError, match=r"expired at .* UTC.*issue a new one"):
        identity_from_auth_context(Call(), end.replace(microsecond=1))
    with pytest.raises(CredentialsError, match=r"valid only from .*compare the clocks"):
        identity_from_auth_context(Call(), begin - DAY / 86400)
