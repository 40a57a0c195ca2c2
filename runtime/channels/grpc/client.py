"""The caller's end over a network: `GrpcChannel` opens gRPC streams. What goes over them is `stream`'s."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from planc.errors import VersionError
from runtime.channels.address import Address
from runtime.channels.grpc import chunks
from runtime.channels.grpc.stream import ChunkedExchange, GrpcStream
from runtime.channels.streams.channel import NoAnswer, Opened, StreamChannel
from runtime.errors import ConnectionLost, PermissionDenied, WorkerError
from runtime.identity import Role
from runtime.security.tls import grpc
from runtime.wire import Frame, WireLimits

_FATAL = {
    grpc.StatusCode.UNAUTHENTICATED: PermissionDenied,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.INVALID_ARGUMENT: ConnectionLost,
    grpc.StatusCode.UNIMPLEMENTED: ConnectionLost,
}
"""After these another try would end the same."""


class GrpcChannel(StreamChannel[ChunkedExchange]):
    """A channel to a worker that listens on a network. Safe to use from many threads.

    Args:
        address: where.
        credentials: ``grpc.ChannelCredentials`` for TLS; None for none.
        metadata: sent with every stream: a token, or a name where nobody checks it.
        timeout: seconds after which a call without a reply is given up.
        patience: seconds for which a connection that cannot be made is tried again.
        options: of the gRPC channel, beside those that are set here.
        limits: the largest reply that is accepted.

    Raises:
        ConnectionLost: there is no worker.
        PermissionDenied: it does not let this caller in.
        VersionError: it speaks another version of the protocol.
    """

    def __init__(
        self,
        address: Address,
        credentials: Any = None,
        metadata: Sequence[tuple[str, str]] = (),
        *,
        timeout: float = 600.0,
        patience: float = 20.0,
        options: Sequence[tuple[str, Any]] = (),
        limits: WireLimits | None = None,
    ) -> None:
        # The worker puts frames together by their keys, over all streams: no other channel has these.
        own = secrets.token_bytes(8)
        super().__init__(address, prefix=own, timeout=timeout, patience=patience, limits=limits)
        self._metadata = (*metadata, (chunks.VERSION_KEY, chunks.VERSION))
        options = [*_OPTIONS, *options]
        if credentials is None:
            self._channel = grpc.insecure_channel(address.target, options)
        else:
            self._channel = grpc.secure_channel(address.target, credentials, options)
        try:
            self._start()
        except BaseException:
            self._channel.close()
            raise

    def close(self) -> None:
        """Break the streams. Calls that wait, and later ones, raise ConnectionLost."""
        super().close()
        self._channel.close()

    def refusal(self, broken: Exception | None) -> WorkerError | None:
        """The error of a stream that the worker refused for what was said on it: it would be so again."""
        if isinstance(broken, grpc.Call) and broken.code() in _FATAL:
            return _FATAL[broken.code()](broken.details() or "", worker=self.worker)
        return None

    def _open(self, until: float) -> Opened[ChunkedExchange]:
        start = self._channel.stream_stream(f"/{chunks.SERVICE}/{chunks.METHOD}")
        stream = GrpcStream(lambda sent: start(sent, metadata=self._metadata), self._limit)
        try:
            said = stream.metadata()
        except grpc.RpcError:
            said = {}
        if chunks.WORKER_KEY in said:
            return Opened(stream, said[chunks.WORKER_KEY], said.get(chunks.CLIENT_KEY, ""))
        code, text = stream.status()
        if code is grpc.StatusCode.FAILED_PRECONDITION:
            raise VersionError(f"the worker at {self.address}: {text}")
        if code in _FATAL:
            raise _FATAL[code](f"at {self.address}: {text}", worker=self.worker)
        raise NoAnswer(f"{code.name.lower()}: {text}")

    def _exchange(self, key: bytes, frame: Frame, deadline: float) -> ChunkedExchange:
        return ChunkedExchange(key, frame, deadline)


def words(client: str, role: Role) -> Sequence[tuple[str, str]]:
    """The metadata by which a caller says who they are, where their word is taken."""
    return ((chunks.CLIENT_KEY, client), (chunks.ROLE_KEY, role.value))


_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", chunks.MAX_MESSAGE),
    ("grpc.max_send_message_length", chunks.MAX_MESSAGE),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.enable_retries", 0),  # requests are repeated here, where it is known what was answered
    ("grpc.use_local_subchannel_pool", 1),
]
