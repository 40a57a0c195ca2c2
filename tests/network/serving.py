"""Workers of this process behind real servers, for whole suites: unix sockets, gRPC, and mutual TLS."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

from runtime.channels.address import Address
from runtime.channels.base import Channel, Connection
from runtime.channels.grpc import callers as grpc_callers
from runtime.channels.grpc.server import GrpcListening
from runtime.channels.streams.channel import StreamChannel
from runtime.channels.streams.server import FrameHandler, Listening
from runtime.channels.unix import callers as unix_callers
from runtime.channels.unix.server import UnixListening
from runtime.connecting import TLS, open_channel
from runtime.errors import ConnectionLost
from runtime.identity import Identity, Role
from runtime.remote import virtual
from runtime.security.authority import Authority
from runtime.security.credentials import server_credentials
from runtime.worker import Worker

STREAMS = ("unix", "grpc")
"""Over which whoever says a name is believed it."""
CHANNELS = ("in-process", *STREAMS, "tls")
_numbers = count()


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="planc-tests-"))


@cache
def authority() -> Authority:
    return Authority.create(_folder() / "ca", "tests", 30)


@cache
def certificate(role: Role, name: str) -> tuple[Path, Path]:
    issued = authority().issue(Identity(name, role))
    return issued.certificate, issued.key


def tls(role: Role, name: str) -> TLS:
    return TLS(authority().folder / "ca.pem", *certificate(role, name))


def anywhere(kind: str) -> Address:
    """An address for a server that is free."""
    if kind == "unix":
        return Address(path=str(_folder() / f"{next(_numbers)}.sock"))
    return Address("127.0.0.1", 0)


def listening(worker: FrameHandler, address: Address, **options: Any) -> Listening:
    """A server of the kind that the address asks for, which believes names."""
    if address.path:
        return UnixListening(worker, address, unix_callers.by_their_word, **options)
    return GrpcListening(worker, address, grpc_callers.by_their_word, **options)


class Serving:
    """Virtual workers, each behind a server of its own from the first time that it is connected to."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._servers: weakref.WeakKeyDictionary[Worker, Listening] = weakref.WeakKeyDictionary()
        self._channels: list[Channel] = []

    def join(self, worker: Worker, client: str) -> Connection:
        channel = self._open(worker, client, Role.CLIENT)
        # Both ways of sending are covered: without waiting here, one request at a time there.
        return Connection(channel, client, pipeline=None if self._kind == "tls" else channel)

    def peer(self, own: str, id: str) -> Channel:
        worker = virtual._known.get(id)
        if worker is None:
            raise ConnectionLost(f"there is no worker {id!r} in this process", worker=id)
        return self._open(worker, own, Role.WORKER)

    def close(self) -> None:
        for channel in self._channels:
            channel.close()
        for server in list(self._servers.values()):
            server.close()

    def _open(self, worker: Worker, name: str, role: Role) -> StreamChannel[Any]:
        server = self._servers.get(worker)
        if server is None:
            server = self._servers[worker] = self._serve(worker)
        channel = open_channel(
            str(server.address),
            client=name,
            role=role,
            tls=tls(role, name) if self._kind == "tls" else None,
            worker=worker.id,
            patience=2.0,
        )
        self._channels.append(channel)
        return channel

    def _serve(self, worker: Worker) -> Listening:
        address = anywhere(self._kind)
        if self._kind != "tls":
            return listening(worker, address)
        own = certificate(Role.WORKER, worker.id)
        credentials = server_credentials(*own, authority().folder / "ca.pem")
        return GrpcListening(worker, address, grpc_callers.by_certificate, credentials)


@contextmanager
def over(channel: str) -> Generator[None]:
    """Let all virtual workers that are made meanwhile be reached over a channel of this kind."""
    if channel == "in-process":
        yield
        return
    serving = Serving(channel)
    with (
        mock.patch.object(virtual, "join", serving.join),
        mock.patch.object(virtual, "peer", serving.peer),
        mock.patch.object(virtual, "_me", None),
    ):
        try:
            yield
        finally:
            serving.close()
