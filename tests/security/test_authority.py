"""What an authority makes: the files and their modes, what is in the certificates, and what it refuses."""

from __future__ import annotations

import stat
import traceback
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from runtime.errors import CredentialsError
from runtime.identity import Identity, Role
from runtime.security import files
from runtime.security.authority import Authority
from runtime.security.credentials import load_pair
from runtime.security.identity import PINNED_DOMAIN, hosts_of, identity_of, pinned_host
from tests.security.helpers import DAY, expired, hand_made

BOB, ANN = Identity("bob", Role.WORKER), Identity("ann", Role.CLIENT)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def of(certificate: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(certificate.read_bytes())


def extension(certificate: x509.Certificate, kind: type[Any]) -> x509.Extension[Any]:
    return certificate.extensions.get_extension_for_class(kind)


def test_keys_are_closed_and_certificates_are_not(authority: Authority) -> None:
    authority.issue(BOB)
    assert mode(authority.folder) == 0o700
    assert {path.name: mode(path) for path in authority.folder.iterdir()} == {
        "ca.pem": 0o644,
        "ca.key": 0o600,
        "worker-bob.pem": 0o644,
        "worker-bob.key": 0o600,
    }


def test_the_authority_signs_certificates_and_no_authorities(authority: Authority) -> None:
    made = of(authority.folder / "ca.pem")
    constraints, usage = extension(made, x509.BasicConstraints), extension(made, x509.KeyUsage)
    assert (constraints.value.ca, constraints.value.path_length, constraints.critical) == (True, 0, True)
    assert (usage.value.key_cert_sign, usage.value.digital_signature, usage.critical) == (True, False, True)
    made.verify_directly_issued_by(made)
    assert isinstance(made.public_key(), ec.EllipticCurvePublicKey)


@pytest.mark.parametrize(
    ("identity", "usage"),
    [
        (BOB, [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
        (ANN, [ExtendedKeyUsageOID.CLIENT_AUTH]),
    ],
)
def test_what_a_certificate_says(
    authority: Authority, identity: Identity, usage: list[x509.ObjectIdentifier]
) -> None:
    issued = authority.issue(identity)
    made = of(issued.certificate)
    made.verify_directly_issued_by(authority.certificate)
    assert identity_of(issued.certificate.read_bytes()) == identity == issued.identity
    assert list(extension(made, x509.ExtendedKeyUsage).value) == usage
    assert extension(made, x509.BasicConstraints).value.ca is False
    assert extension(made, x509.BasicConstraints).critical
    key_usage = extension(made, x509.KeyUsage).value
    assert (key_usage.digital_signature, key_usage.key_cert_sign) == (True, False)
    own_id = extension(authority.certificate, x509.SubjectKeyIdentifier).value.digest
    assert extension(made, x509.AuthorityKeyIdentifier).value.key_identifier == own_id
    assert extension(made, x509.SubjectKeyIdentifier).value.digest != own_id
    before, after = made.not_valid_before_utc, made.not_valid_after_utc
    assert timedelta(minutes=4) < datetime.now(UTC) - before < timedelta(minutes=10)
    assert 89 * DAY < after - datetime.now(UTC) <= 90 * DAY
    assert after == issued.expires
    assert load_pem_private_key(issued.key.read_bytes(), None).public_key() == made.public_key()


def test_serial_numbers_and_keys_are_never_the_same(authority: Authority) -> None:
    made = [of(authority.issue(Identity(f"n{i}", Role.CLIENT)).certificate) for i in range(5)]
    assert len({each.serial_number for each in made}) == 5
    assert len({each.fingerprint(hashes.SHA256()) for each in made}) == 5
    assert len({extension(each, x509.SubjectKeyIdentifier).value.digest for each in made}) == 5


def test_a_worker_is_this_machine_or_the_hosts_that_are_given(authority: Authority) -> None:
    here = of(authority.issue(BOB).certificate)
    assert hosts_of(here) == ("localhost", "127.0.0.1", "::1")
    there = authority.issue(Identity("carol", Role.WORKER), ["data.example.org", "10.0.0.5", "fd00::1"])
    assert there.hosts == hosts_of(of(there.certificate)) == ("data.example.org", "10.0.0.5", "fd00::1")
    names = extension(of(there.certificate), x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.IPAddress) == [ip_address("10.0.0.5"), ip_address("fd00::1")]
    assert names.get_values_for_type(x509.DNSName) == ["data.example.org", pinned_host("carol")]
    client = of(authority.issue(ANN).certificate)
    assert [str(n.value) for n in extension(client, x509.SubjectAlternativeName).value] == [
        "planc://client/ann"
    ]


@pytest.mark.parametrize(
    "host",
    [
        "",
        "a b",
        "data.example.org:443",
        "https://data.example.org",
        "*.example.org",
        "-a.org",
        "a..b",
        "münchen.example",
        "10.0.0.256",
        "1.2.3",
        "a" * 64 + ".org",
        ".".join(["a" * 60] * 5),
        "data.example.org\n",
        pinned_host("carol"),
        pinned_host("carol").upper(),
        PINNED_DOMAIN,
    ],
)
def test_what_is_no_host(authority: Authority, host: str) -> None:
    with pytest.raises(CredentialsError, match=r"is no host|stand for workers"):
        authority.issue(BOB, [host])
    assert sorted(p.name for p in authority.folder.iterdir()) == ["ca.key", "ca.pem"]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "a b", "a\n", "ä", "-x", "_x", "a" * 65, "a\x00", "bob@x", "%41"]
)
def test_what_is_no_name(authority: Authority, name: str) -> None:
    with pytest.raises(CredentialsError, match="cannot be a name: expected 1 to 64 letters"):
        authority.issue(Identity(name, Role.CLIENT))
    assert sorted(p.name for p in authority.folder.iterdir()) == ["ca.key", "ca.pem"]


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "0", "a" * 64, "x.pem", "a..b"])
def test_what_is_a_name(authority: Authority, name: str) -> None:
    issued = authority.issue(Identity(name, Role.CLIENT))
    assert identity_of(issued.certificate.read_bytes()).name == name
    assert issued.certificate.name == f"client-{name}.pem"
    assert issued.key.name == f"client-{name}.key"


def test_an_owner_has_no_certificate_and_a_client_no_host(authority: Authority) -> None:
    with pytest.raises(CredentialsError, match="no certificate makes an owner"):
        authority.issue(Identity("me", Role.OWNER))
    with pytest.raises(CredentialsError, match="holds for no host"):
        authority.issue(ANN, ["localhost"])


@pytest.mark.parametrize("days", [0, -1, 36_501])
def test_days_that_cannot_be(authority: Authority, tmp_path: Path, days: int) -> None:
    with pytest.raises(CredentialsError, match="1 to 36500 days"):
        authority.issue(ANN, days=days)
    with pytest.raises(CredentialsError, match="1 to 36500 days"):
        Authority.create(tmp_path / "new", "x", days)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["", " ", "a" * 65, "a\nb"])
def test_what_cannot_name_a_collaboration(tmp_path: Path, name: str) -> None:
    with pytest.raises(CredentialsError, match="cannot name a collaboration"):
        Authority.create(tmp_path / "new", name, 10)


def test_no_certificate_outlives_its_authority(tmp_path: Path) -> None:
    brief = Authority.create(tmp_path / "certs", "brief", 10)
    assert brief.issue(ANN, days=90).expires == brief.certificate.not_valid_after_utc


def test_nothing_is_overwritten(authority: Authority) -> None:
    issued = authority.issue(BOB)
    before = {path: path.read_bytes() for path in authority.folder.iterdir()}
    with pytest.raises(CredentialsError, match=r"ca\.pem is there already, and is not overwritten"):
        Authority.create(authority.folder, "test", 10)
    with pytest.raises(CredentialsError, match=r"worker-bob\.pem is there already.*--renew"):
        authority.issue(BOB)
    issued.certificate.unlink()
    with pytest.raises(CredentialsError, match=r"worker-bob\.key is there already, and is not overwritten"):
        authority.issue(BOB)
    assert {path: path.read_bytes() for path in authority.folder.iterdir()} == {
        path: data for path, data in before.items() if path != issued.certificate
    }


def test_a_certificate_that_cannot_be_written_leaves_no_key(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = files.create

    def failing(path: Path, data: bytes, mode: int) -> None:
        if path.suffix == ".pem":
            raise OSError(28, "No space left on device", str(path))
        create(path, data, mode)

    monkeypatch.setattr(files, "create", failing)
    with pytest.raises(OSError, match="No space left"):
        authority.issue(BOB)
    assert sorted(p.name for p in authority.folder.iterdir()) == ["ca.key", "ca.pem"]


def test_renewal_keeps_the_key_and_the_hosts(authority: Authority) -> None:
    first = authority.issue(BOB, ["data.example.org"], days=2)
    old, key = of(first.certificate), first.key.read_bytes()
    second = authority.issue(BOB, days=30, renew=True)
    new = of(second.certificate)
    assert (first.certificate, first.key, first.hosts) == (second.certificate, second.key, second.hosts)
    assert first.key.read_bytes() == key
    assert new.public_key() == old.public_key()
    assert new.serial_number != old.serial_number
    assert new.not_valid_after_utc - old.not_valid_after_utc > 27 * DAY
    assert authority.issue(BOB, ["10.0.0.5"], renew=True).hosts == ("10.0.0.5",)
    assert mode(first.certificate) == 0o644


def test_what_has_expired_can_be_renewed(authority: Authority) -> None:
    certificate, key = expired(authority, BOB)
    certificate.rename(authority.folder / "worker-bob.pem")
    key.rename(authority.folder / "worker-bob.key")
    issued = authority.issue(BOB, renew=True)
    assert load_pair(issued.certificate, issued.key).identity == BOB
    assert issued.hosts == ("localhost", "127.0.0.1", "::1")


def test_renewal_of_what_is_not_there_or_somebody_elses(authority: Authority) -> None:
    with pytest.raises(CredentialsError, match=r"worker-bob\.pem: no such file"):
        authority.issue(BOB, renew=True)
    carol = authority.issue(Identity("carol", Role.WORKER))
    carol.certificate.rename(authority.folder / "worker-bob.pem")
    carol.key.rename(authority.folder / "worker-bob.key")
    with pytest.raises(
        CredentialsError, match="expected the certificate of worker bob, found that of worker carol"
    ):
        authority.issue(BOB, renew=True)


def test_a_folder_that_others_write_in_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(CredentialsError, match="others may write in this folder, its mode is 777: chmod 700"):
        Authority.create(folder, "test", 10)
    folder.chmod(0o755)
    Authority.create(folder, "test", 10)


def test_opening_what_is_no_authority(authority: Authority, other: Authority, tmp_path: Path) -> None:
    with pytest.raises(
        CredentialsError, match=r"ca\.pem: no such file; make an authority with `planc certs init"
    ):
        Authority.open(tmp_path)
    assert Authority.open(authority.folder).certificate == authority.certificate
    mine = (authority.folder / "ca.pem").read_bytes()
    (authority.folder / "ca.pem").write_bytes((other.folder / "ca.pem").read_bytes())
    with pytest.raises(CredentialsError, match=r"ca\.key: this private key is not that of the certificate"):
        Authority.open(authority.folder)
    (authority.folder / "ca.pem").write_bytes(authority.issue(ANN).certificate.read_bytes())
    with pytest.raises(
        CredentialsError, match="expected an authority's certificate, found one that signs none"
    ):
        Authority.open(authority.folder)
    (authority.folder / "ca.pem").write_bytes(mine)
    (authority.folder / "ca.key").chmod(0o640)
    with pytest.raises(CredentialsError, match="that only its owner may open, its mode is 640: chmod 600"):
        Authority.open(authority.folder)


def test_no_key_is_in_any_text(authority: Authority) -> None:
    secret = (authority.folder / "ca.key").read_text()
    body = secret.splitlines()[1]
    assert "key" not in repr(authority).replace(str(authority.folder), "")
    certificate, key = hand_made(authority, ANN, datetime.now(UTC), datetime.now(UTC) + DAY)
    key.write_text(secret.replace("PRIVATE KEY", "SECRET KEY"))
    key.rename(authority.folder / "client-ann.key")
    certificate.rename(authority.folder / "client-ann.pem")
    with pytest.raises(CredentialsError) as caught:
        authority.issue(ANN, renew=True)
    assert body not in "".join(traceback.format_exception(caught.value))
