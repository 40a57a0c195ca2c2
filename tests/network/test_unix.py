"""What only a channel over a unix socket does: its file, its users, cuts at any byte, life without gRPC."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.network import Peak
from planc.errors import InputError
from runtime import connect
from runtime.channels.address import Address
from runtime.channels.streams.server import ServerLimits
from runtime.channels.unix.client import UnixChannel
from runtime.channels.unix.framing import BUFFER, HEAD
from runtime.errors import ConnectionLost, PermissionDenied
from runtime.worker import Worker
from tests.network.serving import anywhere, listening
from tests.network.test_channel import Slow, get, put, search, values
from tests.serving.helpers import ENVIRONMENT


@contextmanager
def serving(worker: Any, **options: Any) -> Generator[Address]:
    server = listening(worker, anywhere("unix"), **options)
    try:
        yield server.address
    finally:
        server.close()


# -- the file ------------------------------------------------------------------------------------------------


def test_the_file_is_its_users_alone_and_goes_with_the_server() -> None:
    with serving(Worker("bob")) as address:
        file = Path(address.path)
        assert file.is_socket()
        assert file.stat().st_mode & 0o777 == 0o600
    assert not file.exists()


def test_a_socket_that_nobody_listens_at_is_replaced() -> None:
    place = anywhere("unix")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(place.path)
    server = listening(Worker("bob"), place)
    connect(str(place)).close()
    server.close()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("none/s", "its directory is not there"),
        ("file", "no socket"),
        ("x" * 120, "too long"),
        ("a\0b", "null"),
    ],
)
def test_places_where_nobody_can_listen(path: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(InputError, match=said):
        listening(Worker("bob"), Address(path=str(tmp_path / path)))
    assert (tmp_path / "file").read_text() == "precious"


def test_a_server_that_closes_leaves_the_place_to_others() -> None:
    slow = Slow(0.0)
    first = listening(slow, anywhere("unix"))
    channel = UnixChannel(first.address, "ann", patience=0.1)
    slow.seconds = 1.0
    ticket = channel.post(search(1))
    while not first.busy:
        time.sleep(0.005)
    closing = threading.Thread(target=first.close)
    closing.start()
    while Path(first.address.path).exists():
        time.sleep(0.005)
    second = listening(Worker("eve"), first.address)  # while the first one ends what runs
    closing.join()
    assert ticket.reply()
    assert Path(first.address.path).exists()
    second.close()
    channel.close()


def test_a_place_that_cannot_be_is_no_reason_to_wait() -> None:
    with pytest.raises(InputError, match="cannot be a socket"):
        connect("unix:" + "x" * 120)


# -- who is there --------------------------------------------------------------------------------------------


def test_another_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    own = os.geteuid()
    with serving(Worker("bob")) as address:
        monkeypatch.setattr(os, "geteuid", lambda: own + 1)  # as if the worker were somebody else's
        with pytest.raises(PermissionDenied, match=f"runs as user {own + 1}, and the caller as user {own}"):
            connect(str(address))
        monkeypatch.undo()
        connect(str(address)).close()


@pytest.mark.parametrize("name", ["a b", "owner", "", "x" * 65])
def test_names_that_cannot_be_are_refused(name: str) -> None:
    with serving(Worker("bob")) as address, pytest.raises(PermissionDenied, match="name"):
        connect(str(address), client=name)


def test_a_full_server_says_so_and_has_room_again() -> None:
    with serving(Worker("bob"), limits=ServerLimits(streams=2)) as address:
        first = [connect(str(address)) for _ in range(2)]
        with pytest.raises(ConnectionLost, match="2 connections are open"):
            connect(str(address), patience=0.1)
        first[0].close()
        connect(str(address)).close()  # as soon as the server has heard of that
        first[1].close()


# -- breaks --------------------------------------------------------------------------------------------------


class Relay:
    """Stands between a client and a server, and cuts a connection where it is told to.

    Attributes:
        cuts: bytes after which connections are cut, from the client and to it; the first pair is the first
            connection's. Where none is left, none is cut.
    """

    def __init__(self, to: Address, cuts: list[tuple[float, float]]) -> None:
        self.address = anywhere("unix")
        self.connections = 0
        self._to = to
        self._cuts = cuts
        self._door = socket.socket(socket.AF_UNIX)
        self._door.bind(self.address.path)
        self._door.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                here, _ = self._door.accept()
                there = socket.socket(socket.AF_UNIX)
                there.connect(self._to.path)
                self.connections += 1
                cut = self._cuts.pop(0) if self._cuts else (float("inf"), float("inf"))
                threading.Thread(target=self._join, args=(here, there, *cut), daemon=True).start()

    def _join(self, here: socket.socket, there: socket.socket, out: float, back: float) -> None:
        with here, there:
            other = threading.Thread(target=self._carry, args=(here, there, out), daemon=True)
            other.start()
            self._carry(there, here, back)
            other.join()

    def _carry(self, source: socket.socket, sink: socket.socket, left: float) -> None:
        with suppress(OSError):
            while left and (data := source.recv(int(min(left, 2**20)))):
                sink.sendall(data)
                left -= len(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def relayed(cuts: list[tuple[float, float]]) -> Generator[tuple[UnixChannel, Relay]]:
    with serving(Worker("bob")) as address:
        relay = Relay(address, cuts)
        channel = UnixChannel(relay.address, "ann", patience=10.0)
        yield channel, relay
        channel.close()
        relay.close()


_NEVER = float("inf")
_GREETED = 200
"""Bytes after which both ends have greeted."""


@pytest.mark.parametrize("back", [False, True], ids=["there", "back"])
def test_a_connection_that_is_cut_at_any_byte_is_mended(back: bool) -> None:
    x = torch.randn(200_000)
    places = [*range(_GREETED, _GREETED + 60, 7), BUFFER - 1, BUFFER, BUFFER + 1, 3 * BUFFER, 799_999]
    for place in places:
        with relayed([(_NEVER, place) if back else (place, _NEVER)]) as (channel, relay):
            tickets = [channel.post(search(number)) for number in range(1, 6)]
            tickets.append(channel.post(put(6, 1, x)))
            tickets.append(channel.post(get(7, 1)))
            assert torch.equal(values(tickets[-1].reply())[0], x)
            assert all(ticket.reply() for ticket in tickets)
            assert relay.connections == 2


def test_greetings_that_are_cut_are_said_again() -> None:
    for place in (0, 5, 16, 20):
        with relayed([(place, _NEVER), (_NEVER, place)]) as (channel, relay):
            assert channel.worker == "bob"
            assert relay.connections == 3


def test_a_connection_that_always_breaks_is_given_up() -> None:
    with relayed([(_NEVER, _NEVER)] + [(_GREETED, _NEVER)] * 20) as (channel, relay):
        channel._lanes[0].stream.cancel()
        with pytest.raises(ConnectionLost, match="broke 8 times before a reply came"):
            channel.call(put(1, 1, torch.ones(1000)))
        assert relay.connections <= 10


def test_an_interrupt_leaves_a_connection_that_goes_on() -> None:
    slow = Slow(0.0)
    main = threading.main_thread().ident
    assert main is not None
    with serving(slow) as address:
        bob = connect(str(address))
        x = bob.send(torch.ones(2))
        for _ in range(2):
            slow.seconds = 1.0

            def interrupt(before: int = slow.asked) -> None:
                while slow.asked == before:
                    time.sleep(0.005)
                slow.seconds = 0.0
                signal.pthread_kill(main, signal.SIGINT)

            threading.Thread(target=interrupt).start()
            with pytest.raises(KeyboardInterrupt):
                bob.search("#none")
            assert (x + 1).get().tolist() == [2.0, 2.0]
        bob.close()


def test_a_program_that_limits_its_sockets_limits_none_of_ours() -> None:
    slow = Slow(0.0)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(0.05)
    try:
        with serving(slow) as address:
            bob = connect(str(address))
            time.sleep(0.2)
            slow.seconds = 0.2
            assert bob.search("#none") == []
            bob.close()
    finally:
        socket.setdefaulttimeout(before)


# -- large frames --------------------------------------------------------------------------------------------


def test_large_frames_take_no_memory_but_their_own() -> None:
    nbytes = 2**28
    x = torch.ones(nbytes // 4)
    with serving(Worker("bob")) as address:
        bob = connect(str(address))
        remote, up = _measured(lambda: bob.send(x))
        back, down = _measured(lambda: bob.fetch([remote.id], delete=False))
        assert torch.equal(back[0], x)
        assert up - nbytes < 2**25
        assert down - nbytes < 2**25
        bob.close()


def _measured(work: Callable[[], Any]) -> tuple[Any, int]:
    """What a piece of work gives, and by how many bytes the process was larger meanwhile."""
    peak = Peak("self")
    peak.reset()
    return work(), peak.grown()


# -- without the extra ---------------------------------------------------------------------------------------

_WITHOUT = """
import sys
sys.modules["grpc"] = sys.modules["cryptography"] = None
import torch
from pathlib import Path
from planc.errors import InputError
from runtime import connect, connect_owner
from runtime.serving import Serving, Settings

def start(name, **given):
    return Serving(Settings(name, [f"unix:{name}.sock"], socket=Path(f"{name}-owner.sock"), **given))

Path("policy.toml").write_text('[worker]\\npeers = ["bob"]\\n')
alice = start("alice", policy=Path("policy.toml"))
bob = start("bob", peers={"alice": "unix:alice.sock"})
here, there = (connect(f"unix:{name}.sock", client="ann", worker=name) for name in ("bob", "alice"))
x = here.send(torch.ones(3)) + 1
x.move(there)
print(x.get().tolist(), connect_owner("alice-owner.sock").status().worker)
for ask in (
    lambda: connect("grpc://127.0.0.1:7"),
    lambda: Serving(Settings("eve", socket=Path("eve.sock"))),
    lambda: start("eve", peers={"al": "grpc://a:1"}),
):
    try:
        ask()
    except InputError as error:
        print(error)
for each in (here, there, alice, bob):
    each.close()
"""


def test_unix_sockets_need_no_grpc(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        cwd=tmp_path,
        timeout=300,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "[2.0, 2.0, 2.0] alice",
        *(
            f"{what} needs the extra 'network' (grpc is missing): pip install 'planc[network]'"
            for what in (
                "a worker at grpc://127.0.0.1:7",
                "listening at grpc://127.0.0.1:7700",
                "a peer at grpc://a:1",
            )
        ),
    ]


def test_heads_are_as_documented() -> None:
    assert HEAD.pack(bytes(range(8)), 0x0102) == bytes([0, 1, 2, 3, 4, 5, 6, 7, 2, 1, 0, 0, 0, 0, 0, 0])
