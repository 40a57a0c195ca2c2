"""The ways from a worker to its peers: one connection each, opened when it is first needed."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence

import torch

from runtime.channels.base import Channel, Connection
from runtime.errors import ConnectionLost
from runtime.messages import MAX_ID, Body, Request


class Peers:
    """Delivers messages to other workers. Safe to use from many threads.

    Args:
        own: the id of the worker that sends.
        open: the channel to another worker, by its id; None where there is no way to any.
        durable: whether the worker lives on after a restart. A request that comes again then is sent on as
            the message that it was before, so that the peer takes it once.
    """

    def __init__(self, own: str, open: Callable[[str], Channel] | None, *, durable: bool) -> None:
        self._own = own
        self._open = open
        self._durable = durable
        self._connections: dict[str, Connection] = {}
        self._lock = threading.Lock()

    def send(
        self, to: str, body: Body, tensors: Sequence[torch.Tensor], request: Request | None = None
    ) -> None:
        """Deliver a message to a peer, and wait for it to be done.

        Args:
            to: the peer.
            body: the message.
            tensors: those that its slots mean.
            request: because of which it is sent.

        Raises:
            WorkerError: what went wrong there, or on the way.
        """
        connection = self._connection(to)
        if self._durable and request is not None:
            connection = connection.as_session(_session_for(self._own, request))
        connection.call(body, tensors)

    def close(self) -> None:
        """Close the channels."""
        with self._lock:
            connections, self._connections = self._connections, {}
        for connection in connections.values():
            connection.close()

    def _connection(self, to: str) -> Connection:
        if self._open is None:
            raise ConnectionLost(f"there is no way from here to worker {to!r}: no peers are known")
        connection = self._connections.get(to)
        if connection is None:
            made = Connection(self._open(to), self._own, peer=True)
            with self._lock:
                connection = self._connections.setdefault(to, made)
            if connection is not made:
                made.close()
        return connection


def _session_for(worker: str, request: Request) -> int:
    """A session at a peer for what a worker sends there because of this very request."""
    text = f"{worker}\0{request.client}\0{request.session}\0{request.request_id}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") % MAX_ID
