"""Workers that send objects to each other: straight, permitted by both owners, never through the caller."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from runtime import WorkerHandle, connect, count_messages
from runtime.errors import ConnectionLost, PermissionDenied
from runtime.identity import Role
from runtime.serving import Serving, Settings
from tests.network.serving import authority, certificate, tls

Start = Callable[..., Serving]


@pytest.fixture
def start(tmp_path: Path) -> Generator[Start]:
    """Starts a worker in this process, all of it but the process."""
    with ExitStack() as running:

        def one(name: str, secure: bool = False, policy: str = "", **given: Any) -> Serving:
            if secure:
                given["cert"], given["key"] = certificate(Role.WORKER, name)
                given["client_ca"] = authority().folder / "ca.pem"
            if policy:
                given["policy"] = tmp_path / f"{name}.toml"
                given["policy"].write_text(policy)
            given.setdefault("listen", ["127.0.0.1:0"])
            serving = Serving(Settings(name, socket=tmp_path / f"{name}.sock", **given))
            running.callback(serving.close)
            return serving

        yield one


def join(serving: Serving, client: str = "ann") -> WorkerHandle:
    address = serving.addresses[0]
    return connect(str(address), tls=tls(Role.CLIENT, client) if address.secure else None, client=client)


def where(serving: Serving) -> str:
    return str(serving.addresses[0])


TO_ALICE = '[worker]\npeers = ["alice"]\n[default]\nmove = true\n'
FROM_BOB = '[worker]\npeers = ["bob"]\n'


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_a_move_is_one_small_message_of_the_caller(start: Start, secure: bool) -> None:
    alice = start("alice", secure, FROM_BOB)
    bob = start("bob", secure, peers={"alice": where(alice)})
    here, there = join(bob), join(alice)
    x = here.send(torch.arange(250_000.0))
    with count_messages() as sent:
        x.move(there)
    assert (sent.messages, sent.peer_messages) == (1, 1)  # bob's own message is of this process too
    assert sent.by_kind == {"Transfer": 1, "Put": 1}
    assert sent.bytes_out + sent.bytes_in < 2_000
    assert sent.peer_bytes > 1_000_000
    assert x.location is there
    assert (len(bob.worker), len(alice.worker)) == (0, 1)
    assert x.get().equal(torch.arange(250_000.0))  # and it is ann's there, as it was here


def test_averages_on_a_third_worker(start: Start) -> None:
    carol = start("carol", True, '[worker]\npeers = ["bob", "alice"]\n')
    owners = [start(name, True, peers={"carol": where(carol)}) for name in ("bob", "alice")]
    third = join(carol)
    models = [
        join(serving).send(torch.full((50_000,), float(n))) for n, serving in enumerate(owners, start=1)
    ]
    with count_messages() as sent:
        for model in models:
            model.move(third)
        mean = (models[0] + models[1]) / 2
        third.settle()
    assert sent.bytes_out + sent.bytes_in < 5_000  # neither model came by
    assert sent.peer_bytes > 400_000
    assert mean.get().unique().tolist() == [1.5]


def test_a_worker_that_its_owner_did_not_name(start: Start) -> None:
    alice = start("alice", policy=FROM_BOB)
    bob, there = start("bob"), join(alice)
    x = join(bob).send(torch.ones(2))
    with pytest.raises(PermissionDenied, match="'ann' may not have objects sent to 'alice'"):
        x.move(there)
    assert x.get().tolist() == [1.0, 1.0]


def test_a_worker_whose_address_is_not_known(start: Start) -> None:
    alice, bob = start("alice", policy=FROM_BOB), start("bob", policy=TO_ALICE)
    x = join(bob).send(torch.ones(2))
    with pytest.raises(PermissionDenied, match=r"does not know where 'alice' is.*--peer alice=ADDRESS"):
        x.move(join(alice))
    assert x.get().tolist() == [1.0, 1.0]


def test_a_worker_whose_owner_did_not_name_the_sender(start: Start) -> None:
    alice = start("alice")
    bob = start("bob", policy=TO_ALICE, peers={"alice": where(alice)})
    x = join(bob).send(torch.ones(2))
    with pytest.raises(PermissionDenied, match="worker 'bob' is no peer here"):
        x.move(join(alice))
    assert len(alice.worker) == 0
    assert x.get().tolist() == [1.0, 1.0]


def test_a_client_that_the_policy_does_not_let_move(start: Start) -> None:
    alice = start("alice", policy=FROM_BOB)
    policy = TO_ALICE.replace("move = true", "move = false") + '[client.zoe]\nmove = ["alice"]\n'
    bob = start("bob", policy=policy, peers={"alice": where(alice)})
    x = join(bob).send(torch.ones(2))
    with pytest.raises(PermissionDenied, match="'ann' may not have objects sent"):
        x.move(join(alice))
    y = join(bob, "zoe").send(torch.ones(2))
    y.move(join(alice, "zoe"))
    assert y.get().tolist() == [1.0, 1.0]


def test_a_peer_that_the_policy_does_not_name_is_warned_of(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    alice = start("alice")
    bob = start("bob", policy=FROM_BOB.replace("bob", "carol"), peers={"alice": where(alice)})
    assert "nothing goes to peer 'alice': it is not among worker.peers of" in caplog.text
    with pytest.raises(PermissionDenied):
        join(bob).send(torch.ones(2)).move(join(alice))


def test_private_data_goes_nowhere(start: Start) -> None:
    alice = start("alice", policy=FROM_BOB)
    bob = start("bob", peers={"alice": where(alice)})
    x = join(bob).send(torch.ones(2), private=True)
    with pytest.raises(PermissionDenied, match="private"):
        x.move(join(alice))
    assert len(alice.worker) == 0


def test_a_worker_that_listens_at_the_place_of_another(start: Start) -> None:
    """Bob's owner named alice, and mallory has her address: certificates tell them apart."""
    mallory = start("mallory", True, FROM_BOB)
    bob = start("bob", True, TO_ALICE, peers={"alice": where(mallory)})
    alice = start("alice", True, FROM_BOB)
    x = join(bob).send(torch.ones(2))
    with pytest.raises(ConnectionLost, match="no worker answers"):
        x.move(join(alice))
    assert len(mallory.worker) == 0
