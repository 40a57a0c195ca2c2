"""Who may connect to whom: real certificates, a real gRPC server and client, real TLS on loopback."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from runtime.security.authority import Authority
from runtime.security.credentials import (
    Identity,
    Role,
    channel_credentials,
    identity_from_auth_context,
    identity_from_token,
    pinning_options,
    server_credentials,
)
from runtime.security.tls import grpc
from runtime.security.tokens import TokenStore
from tests.security.helpers import DAY, call, client, expired, serving, worker

ROOT = Path(__file__).parents[2]


def refused(code: grpc.StatusCode, address: str, credentials: object, options: object = ()) -> str:
    """The text with which a call fails."""
    with pytest.raises(grpc.RpcError) as caught:
        call(address, credentials, options)
    assert caught.value.code() is code
    return caught.value.details()


def unreachable(address: str, credentials: object, options: object = ()) -> None:
    """The handshake fails: no call gets to the server."""
    refused(grpc.StatusCode.UNAVAILABLE, address, credentials, options)


def test_a_client_and_a_worker_are_who_their_certificates_say(authority: Authority) -> None:
    peer = authority.issue(Identity("carol", Role.WORKER))
    with worker(authority) as served:
        assert call(served.address, client(authority)) == "client ann"
        assert call(served.address, client(authority, "a.b_c-9")) == "client a.b_c-9"
        as_peer = channel_credentials(authority.folder / "ca.pem", peer.certificate, peer.key)
        assert call(served.address, as_peer) == "worker carol"


def test_a_client_of_another_authority_is_refused(authority: Authority, other: Authority) -> None:
    theirs = other.issue(Identity("ann", Role.CLIENT))
    with worker(authority) as served:
        ours = channel_credentials(authority.folder / "ca.pem", theirs.certificate, theirs.key)
        unreachable(served.address, ours)
        assert served.decisions == []
        assert call(served.address, client(authority)) == "client ann"


def test_a_worker_of_another_authority_is_refused(authority: Authority, other: Authority) -> None:
    with worker(other) as served:
        unreachable(served.address, client(authority))


def test_a_caller_with_no_certificate_is_refused(authority: Authority) -> None:
    with worker(authority) as served:
        unreachable(served.address, grpc.ssl_channel_credentials((authority.folder / "ca.pem").read_bytes()))
        assert served.decisions == []


def test_an_expired_client_is_refused_in_the_handshake(authority: Authority) -> None:
    certificate, key = expired(authority, Identity("ann", Role.CLIENT))
    # As a peer would that does not look at its own certificate, which `channel_credentials` does.
    credentials = grpc.ssl_channel_credentials(
        (authority.folder / "ca.pem").read_bytes(), key.read_bytes(), certificate.read_bytes()
    )
    with worker(authority) as served:
        unreachable(served.address, credentials)
        assert served.decisions == []


def test_an_expired_worker_is_refused(authority: Authority) -> None:
    certificate, key = expired(authority, Identity("bob", Role.WORKER))
    ca = (authority.folder / "ca.pem").read_bytes()
    with serving(
        grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())], ca, True)
    ) as served:
        unreachable(served.address, client(authority))


def test_a_certificate_that_expires_while_the_connection_lasts_is_refused_at_the_next_call(
    authority: Authority,
) -> None:
    made, bob = (authority.issue(Identity(*who)) for who in (("ann", Role.CLIENT), ("bob", Role.WORKER)))
    late = partial(identity_from_auth_context, now=made.expires + timedelta(seconds=1))
    with serving(server_credentials(bob.certificate, bob.key, authority.folder / "ca.pem"), late) as served:
        ann = channel_credentials(authority.folder / "ca.pem", made.certificate, made.key)
        text = refused(grpc.StatusCode.UNAUTHENTICATED, served.address, ann)
    assert "the caller's certificate: the certificate expired at" in text


def test_a_clients_certificate_makes_no_server(authority: Authority, tmp_path: Path) -> None:
    """Even one that holds for the right host: its extended key usage says client."""
    made = authority.issue(Identity("eve", Role.CLIENT))
    own = x509.load_pem_x509_certificate(made.certificate.read_bytes())
    builder = (
        x509.CertificateBuilder()
        .subject_name(own.subject)
        .issuer_name(own.issuer)
        .public_key(own.public_key())
        .serial_number(1)
        .not_valid_before(own.not_valid_before_utc)
        .not_valid_after(own.not_valid_after_utc)
    )
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])

    def chain(usage: x509.ObjectIdentifier) -> bytes:
        extended = builder.add_extension(names, False).add_extension(x509.ExtendedKeyUsage([usage]), False)
        return extended.sign(authority.key, hashes.SHA256()).public_bytes(Encoding.PEM)

    options = [("grpc.ssl_target_name_override", "localhost")]
    for usage, good in ((ExtendedKeyUsageOID.SERVER_AUTH, True), (ExtendedKeyUsageOID.CLIENT_AUTH, False)):
        credentials = grpc.ssl_server_credentials(
            [(made.key.read_bytes(), chain(usage))], (authority.folder / "ca.pem").read_bytes(), True
        )
        with serving(credentials) as served:
            if good:
                assert call(served.address, client(authority), options) == "client ann"
                (authority.folder / "client-ann.pem").unlink()
                (authority.folder / "client-ann.key").unlink()
            else:
                unreachable(served.address, client(authority), options)


def test_a_channel_can_be_held_to_one_worker(authority: Authority) -> None:
    ann = client(authority)
    with worker(authority, "bob") as served:
        assert call(served.address, ann) == "client ann"
        assert call(served.address, ann, pinning_options("bob")) == "client ann"
        for wrong in ("carol", "Bob", "bob.", "bo"):
            unreachable(served.address, ann, pinning_options(wrong))


def test_a_worker_is_not_reached_at_a_host_that_its_certificate_does_not_name(authority: Authority) -> None:
    ann, bob = client(authority), authority.issue(Identity("bob", Role.WORKER), ["data.example.org"])
    with serving(server_credentials(bob.certificate, bob.key, authority.folder / "ca.pem")) as served:
        unreachable(served.address, ann)
        assert call(served.address, ann, [("grpc.ssl_target_name_override", "data.example.org")])
        assert call(served.address, ann, pinning_options("bob")) == "client ann"


def test_a_call_without_tls_is_nobodys(authority: Authority) -> None:
    local = grpc.local_server_credentials(grpc.LocalConnectionType.LOCAL_TCP)
    for who in (
        identity_from_auth_context,
        partial(identity_from_token, store=TokenStore(authority.folder / "tokens.json")),
    ):
        with serving(local, who) as served:
            text = refused(
                grpc.StatusCode.UNAUTHENTICATED,
                served.address,
                grpc.local_channel_credentials(grpc.LocalConnectionType.LOCAL_TCP),
            )
            assert "expected a connection with TLSv1.3" in text


def test_a_token_is_a_client_until_it_is_wrong_expired_or_revoked(authority: Authority) -> None:
    store, ca = TokenStore(authority.folder / "tokens.json"), authority.folder / "ca.pem"
    ann, eve = store.add("ann"), store.add("eve")
    bob = authority.issue(Identity("bob", Role.WORKER))
    clock = {"now": None}

    def who(context: object) -> Identity:
        return identity_from_token(context, store, clock["now"])

    with serving(server_credentials(bob.certificate, bob.key, None), who) as served:
        refusal = partial(refused, grpc.StatusCode.UNAUTHENTICATED, served.address)
        assert call(served.address, channel_credentials(ca, token=ann.text)) == "client ann"
        texts = {
            refusal(channel_credentials(ca, token=wrong))
            for wrong in (ann.text[:-1] + "_", eve.text[:22] + ann.text[22:], "x")
        }
        texts.add(refusal(grpc.ssl_channel_credentials(ca.read_bytes())))  # none at all
        brief = store.add("ann", ann_ends := authority.certificate.not_valid_after_utc - DAY)
        assert call(served.address, channel_credentials(ca, token=brief.text)) == "client ann"
        clock["now"] = ann_ends + DAY
        texts.add(refusal(channel_credentials(ca, token=brief.text)))
        clock["now"] = None
        store.revoke("ann")
        texts.add(refusal(channel_credentials(ca, token=ann.text)))
        assert call(served.address, channel_credentials(ca, token=eve.text)) == "client eve"
    # One text for every reason, and no token in it.
    assert texts == {"the call came without a token that is accepted here: ask the worker's owner for one"}


def _versions(when: str, folder: Path) -> dict[str, object]:
    clean = {name: value for name, value in os.environ.items() if name != "GRPC_SSL_CIPHER_SUITES"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.security.versions", when, str(folder)],
        cwd=ROOT,
        env={**clean, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return json.loads(done.stdout)


def test_only_tls_1_3_is_spoken(tmp_path: Path) -> None:
    found = _versions("early", tmp_path / "certs")
    assert found == {
        "any": "TLSv1.3",
        "1.3": "TLSv1.3",
        "1.2": "refused",
        "decisions": ["client ann", "client ann"],
        "left": None,
    }


def test_where_tls_1_2_is_spoken_its_calls_are_refused(tmp_path: Path) -> None:
    found = _versions("late", tmp_path / "certs")
    assert (found["any"], found["1.2"], found["left"]) == ("TLSv1.3", "TLSv1.2", None)
    assert found["decisions"] == [
        "client ann",
        "client ann",
        "expected a connection with TLSv1.3, this one has TLSv1.2",
    ]


@pytest.mark.parametrize("chosen", [None, "ECDHE-ECDSA-AES128-GCM-SHA256"])
def test_ciphers_that_somebody_chose_stay(monkeypatch: pytest.MonkeyPatch, chosen: str | None) -> None:
    if chosen is None:
        monkeypatch.delenv("GRPC_SSL_CIPHER_SUITES", raising=False)
    else:
        monkeypatch.setenv("GRPC_SSL_CIPHER_SUITES", chosen)
    runpy.run_path(str(ROOT / "runtime" / "security" / "tls.py"))
    assert os.environ.get("GRPC_SSL_CIPHER_SUITES") == chosen


def test_nothing_imports_grpc_before_tls_1_2_is_ruled_out() -> None:
    """A module that imports it is in a package that imports `runtime.security.tls` first, or is that."""
    direct = re.compile(r"^\s*(import|from) grpc\b", re.MULTILINE)
    ruled_out = "\nfrom runtime.security import tls as tls\n"
    own = ROOT / "runtime" / "security" / "tls.py"
    assert direct.search(own.read_text("utf-8"))
    late = [
        path.relative_to(ROOT)
        for path in sorted((ROOT / "runtime").rglob("*.py"))
        if path != own
        and direct.search(path.read_text("utf-8"))
        and ruled_out not in (path.parent / "__init__.py").read_text("utf-8")
    ]
    assert late == [], "write `from runtime.security.tls import grpc`"


def test_a_key_that_is_written_is_the_key_that_signs(authority: Authority) -> None:
    pem = (authority.folder / "ca.key").read_bytes()
    key = load_pem_private_key(pem, None)
    assert key.public_key() == authority.certificate.public_key()
