"""The worker's end on a network: takes chunks in, lets the worker answer frames in order, sends the replies.

Who opens a stream is what `Authenticate` says of it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor, Future
from typing import Any, cast

from planc.errors import DecodeError, InputError, LimitError, PlancError
from runtime.channels.address import Address
from runtime.channels.grpc import chunks
from runtime.channels.grpc.chunks import Chunk, Kind
from runtime.channels.grpc.inbox import Inbox
from runtime.channels.streams.server import Closing, FrameHandler, Listening, ServerLimits
from runtime.errors import WorkerError
from runtime.identity import Identity
from runtime.security.tls import grpc
from runtime.wire import Frame

_log = logging.getLogger(__name__)
_RECHECK = 60.0
"""Seconds between looks at who is at the other end of a stream."""
Authenticate = Callable[[Any], Identity]
"""Who opens a stream, by its ``grpc.ServicerContext``; CredentialsError where nobody vouches for them."""


class GrpcListening(Listening):
    """A server that listens at one address of a network.

    Args:
        worker: what answers the frames.
        address: where to listen.
        authenticate: who opens a stream.
        credentials: ``grpc.ServerCredentials`` for TLS; None for none.
        limits: what it takes on.

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
        super().__init__(worker, limits)
        limits = self._limits
        self._authenticate = authenticate
        self._inbox = Inbox(self._room, limits.patience)
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

    def _shut_door(self) -> None:
        """Streams are let in still, and told that it is closing when they ask for anything."""

    def _hang_up(self) -> None:
        self._stopped.set()
        self._server.stop(0).wait()

    def _bind(self, address: Address, credentials: Any) -> Address:
        try:
            if credentials is None:
                port = self._server.add_insecure_port(address.target)
            else:
                port = self._server.add_secure_port(address.target, credentials)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"cannot listen at {address}: is it taken? ({error})") from None
        return Address(address.host, port, secure=credentials is not None)

    def _session(self, messages: Iterator[bytes], context: Any) -> Generator[bytes]:
        """One stream: everything in it is answered in the order it came."""
        identity = self._identify(context)
        try:
            with self._let_in(identity.name):
                context.send_initial_metadata(
                    ((chunks.WORKER_KEY, self._worker.id), (chunks.CLIENT_KEY, identity.name))
                )
                yield from self._converse(identity, messages, context)
        except LimitError as error:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        except DecodeError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except Closing:
            context.abort(grpc.StatusCode.UNAVAILABLE, f"worker {self._worker.id!r} is shutting down")

    def _converse(self, identity: Identity, messages: Iterator[bytes], context: Any) -> Generator[bytes]:
        checked = time.monotonic()
        for message in messages:
            if time.monotonic() - checked > _RECHECK:  # certificates expire, tokens are revoked
                self._identify(context)
                checked = time.monotonic()
            with self._answering():  # until the replies are sent, which `pack` does last
                yield from chunks.pack(self._answers(identity, message))

    def _identify(self, context: Any) -> Identity:
        version = dict(context.invocation_metadata()).get(chunks.VERSION_KEY)
        if version != chunks.VERSION:
            context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the stream has version {version!r}, this worker speaks {chunks.VERSION!r}",
            )
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
            frame, reply = None, self._too_large(error)  # the client hears why, and its stream goes on
        else:
            if frame is None:
                return
            reply = self._answer(frame, identity)
            del frame
        yield from _reply(chunk, reply)

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


def _reply(chunk: Chunk, reply: Frame) -> Iterator[bytes]:
    total = len(reply)
    for offset, data in chunks.split(reply, min(chunk.have, total)):
        yield chunks.write(Kind.DATA, chunk.key, total, offset, 0, data)


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
