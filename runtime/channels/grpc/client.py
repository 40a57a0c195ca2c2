"""The caller's end: `GrpcChannel` sends frames over streams, and sends them again when one breaks.

That is safe because a worker applies a request once. Frames of one lane keep their order, also over a break;
a call from another thread that need not wait for them takes a lane of its own.
"""

from __future__ import annotations

import secrets
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

from planc.errors import PlancError, VersionError
from runtime.channels.grpc import chunks
from runtime.channels.grpc.address import Address
from runtime.channels.grpc.stream import Exchange, Stream
from runtime.errors import ConnectionLost, DeadlineExceeded, PermissionDenied, WorkerError
from runtime.security.tls import grpc
from runtime.wire import Frame, WireLimits

_LANES = 8
"""Streams of one channel at most: so many calls are answered at the same time."""
_TICK = 0.25
"""Seconds between looks at deadlines."""
_ATTEMPTS = 8
"""Streams on which a frame is sent at most: a worker that falls over it every time gets it no more."""
_FATAL = {
    grpc.StatusCode.UNAUTHENTICATED: PermissionDenied,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.INVALID_ARGUMENT: ConnectionLost,
    grpc.StatusCode.UNIMPLEMENTED: ConnectionLost,
}
_REFUSALS = {*_FATAL, grpc.StatusCode.FAILED_PRECONDITION}
"""After these another try would end the same."""


class GrpcChannel:
    """A channel to a worker that listens somewhere. Safe to use from many threads.

    Args:
        address: where.
        credentials: ``grpc.ChannelCredentials`` for TLS; None for none.
        metadata: sent with every stream: a token, or a name where nobody checks it.
        timeout: seconds after which a call without a reply is given up.
        patience: seconds for which a connection that cannot be made is tried again.
        options: of the gRPC channel, beside those that are set here.
        limits: the largest reply that is accepted.

    Attributes:
        worker: the id of the worker there.
        client: the name that the caller has there.

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
        self.worker = self.client = ""
        self.address = address
        self._timeout = timeout
        self._patience = patience
        self._metadata = (*metadata, (chunks.VERSION_KEY, chunks.VERSION))
        self._limit = (limits or WireLimits()).frame_bytes
        self._keys = _keys()
        self._lock = threading.Lock()
        self._closed = False
        options = [*_OPTIONS, *options]
        if credentials is None:
            self._channel = grpc.insecure_channel(address.target, options)
        else:
            self._channel = grpc.secure_channel(address.target, credentials, options)
        self._lanes: list[_Lane] = []
        try:
            self._lanes.append(_Lane(self))
        except BaseException:
            self._channel.close()
            raise
        _watch(self)

    def call(self, frame: Frame, *, ordered: bool = True) -> bytearray | memoryview:
        """The reply to a frame.

        Args:
            frame: what to send.
            ordered: whether it has to come behind everything that was posted.

        Raises:
            ConnectionLost: none came; DeadlineExceeded where none came in time.
        """
        lane = self._lane(ordered)
        try:
            return lane.begin(self._exchange(frame)).reply()
        finally:
            lane.calls -= 1

    def post(self, frame: Frame) -> Ticket:
        """Send a frame without waiting for its reply. Frames that are posted arrive in order."""
        return self._lanes[0].begin(self._exchange(frame))

    def close(self) -> None:
        """Break the streams. Calls that wait, and later ones, raise ConnectionLost."""
        with self._lock:
            self._closed = True
        for lane in list(self._lanes):
            lane.stream.cancel()
        self._channel.close()

    def open(self, until: float) -> Stream:
        """A new stream to the same worker, tried for until then."""
        start = self._channel.stream_stream(f"/{chunks.SERVICE}/{chunks.METHOD}")
        pause = 0.02
        while True:
            if self._closed:
                raise ConnectionLost("the channel is closed", worker=self.worker)
            stream = Stream(lambda sent: start(sent, metadata=self._metadata), self._limit)
            try:
                said = stream.metadata()
            except grpc.RpcError:
                said = {}
            if chunks.WORKER_KEY in said:
                return self._greeted(stream, said[chunks.WORKER_KEY], said.get(chunks.CLIENT_KEY, ""))
            code, text = stream.status()
            if code in _REFUSALS or time.monotonic() + pause > until:
                raise self._refusal(code, text)
            time.sleep(pause)
            pause = min(2 * pause, 1.0)

    def give_up_late(self, now: float) -> None:
        """Give up the calls that are past their deadline."""
        for lane in list(self._lanes):
            lane.stream.give_up(now, self._late)

    def late(self, exchange: Exchange) -> bool:
        """Whether the deadline of an exchange has passed, in which case it is given up."""
        if exchange.deadline > time.monotonic():
            return False
        exchange.error = self._late()
        return True

    @property
    def patience(self) -> float:
        return self._patience

    def _late(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"no reply came within {self._timeout:g} s: it may work on the request still", worker=self.worker
        )

    def _exchange(self, frame: Frame) -> Exchange:
        return Exchange(next(self._keys), frame, time.monotonic() + self._timeout)

    def _lane(self, ordered: bool) -> _Lane:
        """Where a call goes: beside others where it may, so that a long one holds up no short one."""
        with self._lock:
            first = self._lanes[0]
            free = first
            if not ordered and len(first):
                free = next((lane for lane in self._lanes if not lane.calls and not len(lane)), None)
            if free is not None:
                free.calls += 1
                return free
            full = len(self._lanes) >= _LANES
            if full:
                least = min(self._lanes, key=lambda lane: lane.calls)
                least.calls += 1
                return least
        lane = _Lane(self)
        lane.calls = 1
        with self._lock:
            self._lanes.append(lane)
        return lane

    def _greeted(self, stream: Stream, worker: str, client: str) -> Stream:
        if self.worker and (worker, client) != (self.worker, self.client):
            stream.cancel()
            raise ConnectionLost(
                f"worker {worker!r} listens at {self.address} now and calls the caller {client!r}; "
                f"before it was {self.worker!r}, and {self.client!r}",
                worker=self.worker,
            )
        self.worker, self.client = worker, client
        return stream

    def _refusal(self, code: grpc.StatusCode, text: str) -> WorkerError | VersionError:
        if code is grpc.StatusCode.FAILED_PRECONDITION:
            return VersionError(f"the worker at {self.address}: {text}")
        if code in _FATAL:
            return _FATAL[code](f"at {self.address}: {text}", worker=self.worker)
        reason = f"{code.name.lower()}: {text}"
        return ConnectionLost(f"no worker answers at {self.address} ({reason})", worker=self.worker)


class Ticket:
    """A frame that was sent, and its reply to come."""

    __slots__ = ("_exchange", "_lane")

    def __init__(self, lane: _Lane, exchange: Exchange) -> None:
        self._lane = lane
        self._exchange = exchange

    @property
    def done(self) -> bool:
        """Whether the reply is there."""
        return self._exchange.done

    def reply(self) -> bytearray | memoryview:
        """The reply. Waits for it.

        Raises:
            ConnectionLost: none came; DeadlineExceeded where none came in time.
        """
        exchange = self._exchange
        while not exchange.done:
            stream = self._lane.stream
            stream.wait(exchange)
            if not exchange.done:
                self._lane.mend(stream)
        if exchange.reply is None:
            assert exchange.error is not None
            raise exchange.error
        return exchange.reply


class _Lane:
    """A stream that is mended when it breaks.

    Attributes:
        stream: the one that is open now.
        calls: how many callers wait for a reply on it.
    """

    def __init__(self, channel: GrpcChannel) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self.calls = 0
        self.stream = channel.open(time.monotonic() + channel.patience)

    def __len__(self) -> int:
        return len(self.stream)

    def begin(self, exchange: Exchange) -> Ticket:
        """Send a frame, behind all before it."""
        with self._lock:
            self.stream.begin(exchange)
        return Ticket(self, exchange)

    def mend(self, broken: Stream) -> None:
        """Put a new stream in the place of a broken one, with all that is unanswered, in order."""
        with self._lock:
            if self.stream is not broken:
                return
            left = broken.take_unanswered()
            try:
                self._again(broken, left)
            except PlancError as error:
                for exchange in left:
                    exchange.error = exchange.error or error

    def _again(self, broken: Stream, left: Sequence[Exchange]) -> None:
        refused = self._channel_refused(broken)
        if refused is not None:
            raise refused
        until = time.monotonic() + self._channel.patience
        if left:
            until = min(until, max(exchange.deadline for exchange in left))
        self.stream = self._channel.open(until)
        for exchange in left:
            if self._channel.late(exchange):
                continue
            if exchange.attempts >= _ATTEMPTS:
                exchange.error = ConnectionLost(
                    f"the connection broke {exchange.attempts} times before a reply came",
                    worker=self._channel.worker,
                )
                continue
            # A small frame is sent again whole; of a large one the worker says first how much it has.
            exchange.start = 0 if len(exchange.frame) <= chunks.CHUNK else None
            self.stream.begin(exchange)

    def _channel_refused(self, broken: Stream) -> WorkerError | None:
        """The error of a stream that the worker refused for what was said on it: it would be so again."""
        error = broken.broken
        if isinstance(error, grpc.Call) and error.code() in _FATAL:
            return _FATAL[error.code()](error.details() or "", worker=self._channel.worker)
        return None


def _keys() -> Iterator[bytes]:
    """Names for exchanges that no other channel gives."""
    own = secrets.token_bytes(8)
    return (own + number.to_bytes(8, "little") for number in count())


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


# -- deadlines ---------------------------------------------------------------------------------------------

_watched: weakref.WeakSet[GrpcChannel] = weakref.WeakSet()
_watching = threading.Lock()
_watcher: threading.Thread | None = None


def _watch(channel: GrpcChannel) -> None:
    """Let one thread, for all channels, look at their deadlines: reading a stream cannot time out itself."""
    global _watcher
    with _watching:
        _watched.add(channel)
        if _watcher is None or not _watcher.is_alive():
            _watcher = threading.Thread(target=_look, name="planc-deadlines", daemon=True)
            _watcher.start()


def _look() -> None:
    while True:
        time.sleep(_TICK)
        with _watching:
            channels = list(_watched)
        now = time.monotonic()
        for channel in channels:
            channel.give_up_late(now)
