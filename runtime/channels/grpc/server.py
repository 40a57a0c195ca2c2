"""The worker's end of a stream: takes frames in, lets the worker answer them in order, sends the replies.

What it may be asked is bounded here (streams, bytes under way, patience); what the requests may do is the
worker's business. Who asks is what `Authenticate` says of the stream.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from planc.errors import DecodeError, InputError, LimitError, PlancError
from runtime.channels.grpc import chunks
from runtime.channels.grpc.address import Address
from runtime.channels.grpc.chunks import Chunk, Kind
from runtime.channels.grpc.inbox import Inbox
from runtime.errors import WorkerError, to_failure
from runtime.identity import Identity
from runtime.messages import Reply
from runtime.security.tls import grpc
from runtime.wire import Frame, encode

_log = logging.getLogger(__name__)
_LAST_REPLIES = 10.0
"""Seconds that a server that closes gives clients to read what it answered."""
_RECHECK = 60.0
"""Seconds between looks at who is at the other end of a stream."""
Authenticate = Callable[[Any], Identity]
"""Who opens a stream, by its ``grpc.ServicerContext``; CredentialsError where nobody vouches for them."""


class FrameHandler(Protocol):
    """What answers frames: a `runtime.worker.Worker`."""

    @property
    def id(self) -> str: ...

    def handle_large_frame(self, frame: bytearray | memoryview, identity: Identity) -> Frame: ...


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What a server takes on. Frames are bounded by the worker's `WireLimits` too, once they are there."""

    streams: int = 256
    """Open at a time, of all clients."""
    client_streams: int = 64
    """Of one client."""
    frame_bytes: int = 16 * 2**30
    """Of one frame. Memory is taken only as the bytes come in."""
    client_bytes: int = 32 * 2**30
    """Of the frames that one client has begun to send."""
    patience: float = 120.0
    """Seconds after which a frame that does not grow is forgotten."""
    ping: float = 30.0
    """Seconds between signs of life on a quiet connection; a peer without any for 20 more is gone."""


class Listening:
    """A server that listens at one address.

    Args:
        worker: what answers the frames.
        address: where to listen. The directory of a unix socket must be there.
        credentials: ``grpc.ServerCredentials`` for TLS; None for none.
        authenticate: who opens a stream.
        limits: what it takes on.

    Attributes:
        address: where it listens, with the port that it got.

    Raises:
        InputError: the address is taken, or cannot be listened at.
    """

    def __init__(
        self,
        worker: FrameHandler,
        address: Address,
        authenticate: Authenticate,
        credentials: Any = None,
        limits: ServerLimits | None = None,
    ) -> None:
        self._worker = worker
        self._authenticate = authenticate
        self._limits = limits = limits or ServerLimits()
        self._inbox = Inbox(limits.frame_bytes, limits.client_bytes, patience=limits.patience)
        self._streams = Counter[str]()
        self._busy = self._computing = 0
        self._closing = False
        self._state = threading.Condition()
        self._stopped = threading.Event()
        self._server = grpc.server(
            cast(Any, _Threads(f"planc-{worker.id}")),  # any executor will do; its stub asks for a pool
            options=_options(limits),
            maximum_concurrent_rpcs=limits.streams,
        )
        handler = grpc.stream_stream_rpc_method_handler(self._session)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(chunks.SERVICE, {chunks.METHOD: handler}),)
        )
        self.address = self._bind(address, credentials)
        self._server.start()
        threading.Thread(target=self._sweep, name="planc-sweep", daemon=True).start()

    @property
    def busy(self) -> int:
        """How many frames are being answered."""
        return self._busy

    def close(self, grace: float = 30.0) -> bool:
        """Take no more requests, let those that run end, and stop. Blocks until then.

        Args:
            grace: seconds to wait for what runs.

        Returns:
            Whether all that ran came to its end.
        """
        with self._state:
            self._closing = True
            until = time.monotonic() + grace
            while self._busy and (left := until - time.monotonic()) > 0:
                if self._state.wait_for(lambda: not self._busy, min(left, _LAST_REPLIES)):
                    break
                if not self._computing:  # a client that never reads its reply must not keep it from ending
                    break
            done = not self._computing
        self._stopped.set()
        self._server.stop(0).wait()
        if self.address.path:
            with suppress(OSError):
                os.unlink(self.address.path)
        return done

    def _bind(self, address: Address, credentials: Any) -> Address:
        if address.path:
            _clear_socket(address.path)
        try:
            if credentials is None:
                port = self._server.add_insecure_port(address.target)
            else:
                port = self._server.add_secure_port(address.target, credentials)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"cannot listen at {address}: is it taken? ({error})") from None
        if address.path:
            os.chmod(address.path, 0o600)
            return address
        return Address(address.host, port, secure=credentials is not None)

    def _session(self, messages: Iterator[bytes], context: Any) -> Generator[bytes]:
        """One stream: everything in it is answered in the order it came."""
        identity = self._admit(context)
        context.send_initial_metadata(
            ((chunks.WORKER_KEY, self._worker.id), (chunks.CLIENT_KEY, identity.name))
        )
        checked = time.monotonic()
        try:
            for message in messages:
                if time.monotonic() - checked > _RECHECK:  # certificates expire, tokens are revoked
                    self._identify(context)
                    checked = time.monotonic()
                with self._answering():  # until the replies are sent, which `pack` does last
                    yield from chunks.pack(self._answers(identity, message))
        except DecodeError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except _Closing:
            context.abort(grpc.StatusCode.UNAVAILABLE, f"worker {self._worker.id!r} is shutting down")
        finally:
            with self._state:
                self._streams[identity.name] -= 1
                if not self._streams[identity.name]:
                    del self._streams[identity.name]

    def _admit(self, context: Any) -> Identity:
        given = dict(context.invocation_metadata())
        if given.get(chunks.VERSION_KEY) != chunks.VERSION:
            context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the stream has version {given.get(chunks.VERSION_KEY)!r}, this worker speaks "
                f"{chunks.VERSION!r}",
            )
        identity = self._identify(context)
        with self._state:
            admitted = self._streams[identity.name] < self._limits.client_streams
            if admitted:
                self._streams[identity.name] += 1
        if not admitted:
            context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{identity.name!r} has {self._limits.client_streams} streams open, as many as are allowed",
            )
        return identity

    def _identify(self, context: Any) -> Identity:
        try:
            return self._authenticate(context)
        except PlancError as error:
            text = error.message if isinstance(error, WorkerError) else str(error)
            _log.warning("worker %r refused a stream from %s: %s", self._worker.id, context.peer(), text)
            context.abort(grpc.StatusCode.UNAUTHENTICATED, text)
            raise AssertionError from error  # abort raises

    def _answers(self, identity: Identity, message: bytes) -> Iterator[bytes]:
        for chunk in chunks.read(message):
            yield from self._take(identity, chunk)

    def _take(self, identity: Identity, chunk: Chunk) -> Generator[bytes]:
        if chunk.kind is not Kind.DATA:
            have = min(self._inbox.have(identity.name, chunk.key), chunk.total)
            yield chunks.write(Kind.HAVE, chunk.key, chunk.total, have)
            return
        try:
            frame = self._inbox.take(identity.name, chunk)
        except LimitError as error:
            # An answer like any other: the client hears why, and its stream goes on.
            frame, reply = None, encode(Reply(0, to_failure(error, self._worker.id)))
        else:
            if frame is None:
                return
            with self._running():
                reply = self._worker.handle_large_frame(frame, identity)
            del frame
        yield from _reply(chunk, reply)

    @contextmanager
    def _answering(self) -> Generator[None]:
        with self._state:
            if self._closing:
                raise _Closing
            self._busy += 1
        try:
            yield
        finally:
            with self._state:
                self._busy -= 1
                self._state.notify_all()

    @contextmanager
    def _running(self) -> Generator[None]:
        with self._state:
            self._computing += 1
        try:
            yield
        finally:
            with self._state:
                self._computing -= 1

    def _sweep(self) -> None:
        while not self._stopped.wait(max(self._limits.patience / 4, 0.05)):
            self._inbox.sweep()


class _Threads(Executor):
    """A thread for each stream, which ends with it; the server bounds how many there are.

    Python waits for the threads of a pool when it exits: a server that nobody closed would keep it from that.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call a function in a new thread."""
        future: Future[Any] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn(*args, **kwargs))
                except BaseException as error:
                    future.set_exception(error)

        threading.Thread(target=run, name=self._name, daemon=True).start()
        return future


class _Closing(Exception):
    """The server takes no more requests."""


def _reply(chunk: Chunk, reply: Frame) -> Iterator[bytes]:
    total = len(reply)
    for offset, data in chunks.split(reply, min(chunk.have, total)):
        yield chunks.write(Kind.DATA, chunk.key, total, offset, 0, data)


def _clear_socket(path: str) -> None:
    """Remove a socket that nobody listens at any more; leave anything else alone.

    Raises:
        InputError: it is no socket, or somebody listens.
    """
    import socket
    import stat

    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        if not Path(path).resolve().parent.is_dir():
            raise InputError(f"cannot listen at unix:{path}: its directory is not there") from None
        return
    if not stat.S_ISSOCK(mode):
        raise InputError(f"cannot listen at unix:{path}: there is a file of that name that is no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            os.unlink(path)
            return
    raise InputError(f"cannot listen at unix:{path}: another worker does")


def _options(limits: ServerLimits) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),  # or two workers would share a port, and clients find either
        ("grpc.max_receive_message_length", chunks.MAX_MESSAGE),
        ("grpc.max_send_message_length", chunks.MAX_MESSAGE),
        ("grpc.max_metadata_size", 16 * 1024),
        ("grpc.keepalive_time_ms", int(limits.ping * 1000)),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.max_ping_strikes", 0),
    ]
