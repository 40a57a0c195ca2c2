"""Files of credentials: what is wrong with which, what was expected, and what to do about it."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from runtime.errors import CredentialsError, to_error, to_failure
from runtime.identity import Identity, Role
from runtime.security.authority import Authority
from runtime.security.credentials import (
    channel_credentials,
    load_authorities,
    load_pair,
    pinning_options,
    server_credentials,
)
from tests.security.helpers import DAY, expired, hand_made, write_key

BOB, ANN = Identity("bob", Role.WORKER), Identity("ann", Role.CLIENT)


def message(loading: Callable[[], object]) -> str:
    with pytest.raises(CredentialsError) as caught:
        loading()
    assert caught.value.__cause__ is None
    assert "-----BEGIN" not in "".join(traceback.format_exception(caught.value))
    return str(caught.value)


def test_a_pair_is_read_and_shows_no_key(authority: Authority) -> None:
    issued = authority.issue(BOB)
    pair = load_pair(issued.certificate, issued.key)
    assert repr(pair) == f"Pair(identity={BOB!r})"
    assert (pair.chain, pair.key) == (issued.certificate.read_bytes(), issued.key.read_bytes())


def test_a_missing_file_is_named(authority: Authority) -> None:
    issued, none = authority.issue(BOB), authority.folder / "none.pem"
    assert (
        message(lambda: load_pair(none, issued.key)) == f"{none}: no such file; expected a certificate (PEM)"
    )
    assert (
        message(lambda: load_pair(issued.certificate, none))
        == f"{none}: no such file; expected a private key (PEM)"
    )
    assert (
        message(lambda: server_credentials(issued.certificate, issued.key, none))
        == f"{none}: no such file; expected an authority's certificate (ca.pem)"
    )


def test_a_folder_is_no_file(authority: Authority) -> None:
    issued = authority.issue(BOB)
    assert "cannot be read: Is a directory" in message(lambda: load_pair(authority.folder, issued.key))


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o620, 0o601, 0o644, 0o777])
def test_a_key_that_others_may_open_is_refused(authority: Authority, mode: int) -> None:
    issued = authority.issue(BOB)
    issued.key.chmod(mode)
    text = message(lambda: load_pair(issued.certificate, issued.key))
    assert text == (
        f"{issued.key}: expected a private key (PEM) that only its owner may open, its mode is {mode:o}: "
        f"chmod 600 {issued.key}"
    )
    issued.key.chmod(0o400)
    load_pair(issued.certificate, issued.key)


def test_files_given_in_the_wrong_place(authority: Authority) -> None:
    bob, ann, ca = authority.issue(BOB), authority.issue(ANN), authority.folder / "ca.pem"
    assert "expected a certificate (PEM or DER), found a private key" in message(
        lambda: load_pair(bob.key, bob.certificate)
    )
    bob.certificate.chmod(0o600)
    assert "expected a private key (PEM), found a certificate" in message(
        lambda: load_pair(bob.certificate, bob.certificate)
    )
    assert f"{ca}: a certificate must have exactly one name" in message(lambda: load_pair(ca, bob.key))
    assert "expected a worker's certificate, found that of client ann" in message(
        lambda: server_credentials(ann.certificate, ann.key, ca)
    )
    assert f"{bob.certificate}: expected an authority's certificate" in message(
        lambda: load_authorities(bob.certificate)
    )
    assert "found a private key" in message(lambda: load_authorities(bob.key))


@pytest.mark.parametrize(
    "data", [b"", b"\x00" * 100, b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_damaged_files(authority: Authority, data: bytes) -> None:
    issued = authority.issue(BOB)
    issued.key.write_bytes(data)
    assert "expected a private key (PEM), found something else" in message(
        lambda: load_pair(issued.certificate, issued.key)
    )
    issued.certificate.write_bytes(data)
    assert "expected a certificate (PEM or DER)" in message(lambda: load_pair(issued.certificate, issued.key))


def test_a_huge_file_is_not_read(authority: Authority) -> None:
    issued = authority.issue(BOB)
    with issued.certificate.open("wb") as file:
        file.truncate(1 << 40)  # sparse: takes no space
    assert "found more than 16 MB" in message(lambda: load_pair(issued.certificate, issued.key))


def test_a_certificate_in_der_is_no_file_of_grpcs(authority: Authority) -> None:
    issued = authority.issue(BOB)
    der = authority.certificate.public_bytes(Encoding.DER)
    (authority.folder / "ca.der").write_bytes(der)
    assert "expected an authority's certificate" in message(
        lambda: load_authorities(authority.folder / "ca.der")
    )
    made = authority.sign(
        ec.generate_private_key(ec.SECP256R1()).public_key(), BOB, (), datetime.now(UTC), _soon()
    )
    issued.certificate.write_bytes(made.public_bytes(Encoding.DER))
    assert "in PEM, found one in DER" in message(lambda: load_pair(issued.certificate, issued.key))


def _soon() -> datetime:
    return datetime.now(UTC) + DAY


def test_a_key_of_another_certificate(authority: Authority) -> None:
    bob, carol = authority.issue(BOB), authority.issue(Identity("carol", Role.WORKER))
    assert message(lambda: load_pair(bob.certificate, carol.key)) == (
        f"{carol.key}: this private key is not that of the certificate {bob.certificate}: "
        "give the pair that was issued together"
    )


def test_a_key_with_a_passphrase_or_of_another_kind(authority: Authority) -> None:
    issued = authority.issue(BOB)
    key = load_pem_private_key(issued.key.read_bytes(), None)
    issued.key.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"hunter2"))
    )
    assert "has a passphrase" in message(lambda: load_pair(issued.certificate, issued.key))
    write_key(issued.key, rsa.generate_private_key(65537, 2048))
    assert "others cannot be held to TLS 1.3" in message(lambda: load_pair(issued.certificate, issued.key))


def test_what_has_expired_or_not_begun(authority: Authority) -> None:
    certificate, key = expired(authority, BOB)
    text = message(lambda: server_credentials(certificate, key, authority.folder / "ca.pem"))
    assert text.startswith(f"{certificate}: the certificate expired at ")
    assert text.endswith("have its authority issue a new one (`planc certs issue ... --renew`)")
    now = datetime.now(UTC)
    certificate, key = hand_made(authority, ANN, now + DAY, now + 2 * DAY)
    assert "compare the clocks" in message(
        lambda: channel_credentials(authority.folder / "ca.pem", certificate, key)
    )


def test_two_authorities_while_one_takes_over(authority: Authority, other: Authority, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes((authority.folder / "ca.pem").read_bytes() + (other.folder / "ca.pem").read_bytes())
    assert load_authorities(both) == both.read_bytes()
    both.write_bytes(both.read_bytes() + authority.issue(ANN).certificate.read_bytes())
    assert "found another" in message(lambda: load_authorities(both))


def test_a_client_shows_something(authority: Authority) -> None:
    ca, ann = authority.folder / "ca.pem", authority.issue(ANN)
    assert "give a certificate and its key, or a token" in message(lambda: channel_credentials(ca))
    assert "given together" in message(lambda: channel_credentials(ca, ann.certificate))
    assert "given together" in message(lambda: channel_credentials(ca, key=ann.key))
    for token in ("a b", "a\n", "ä", "\x00"):
        assert "that is no token" in message(lambda token=token: channel_credentials(ca, token=token))
    channel_credentials(ca, ann.certificate, ann.key, token="planc_0_0")


def test_pinning_takes_names_only() -> None:
    assert "cannot be a name" in message(lambda: pinning_options("data.example.org:1"))


def test_the_error_crosses_a_wire() -> None:
    error = to_error(to_failure(CredentialsError("the call came without a certificate"), "bob"))
    assert type(error) is CredentialsError
    assert str(error) == "worker 'bob': the call came without a certificate"
