"""The caller's end on the same machine: `UnixChannel` connects, and whoever calls sends and reads itself."""

from __future__ import annotations

import select
import socket
import time
import weakref
from contextlib import suppress

from planc.errors import DecodeError, InputError, LimitError, VersionError
from runtime.channels.address import Address
from runtime.channels.streams.channel import NoAnswer, Opened, StreamChannel
from runtime.channels.streams.deadlines import TICK
from runtime.channels.streams.memory import allocate
from runtime.channels.streams.stream import Exchange, Stream
from runtime.channels.unix import framing
from runtime.channels.unix.framing import Greeting, GreetingIntake, Reader, Welcome
from runtime.errors import ConnectionLost, PermissionDenied, to_error
from runtime.identity import Role
from runtime.messages import Failure
from runtime.wire import Frame, WireLimits

_LOOK_MS = 20
"""Milliseconds after which a sender that waits looks again whether somebody reads."""
_GREETING = 10.0
"""Seconds that a worker which took the connection has for its greeting at least: it is there, if slow."""
_FULL = "limit"
"""The kind of refusal after which another try may end otherwise."""


class UnixStream(Stream[Exchange]):
    """A connection to a worker. Safe to use from many threads, as `Stream` is.

    No two wait for each other for ever. The worker takes nothing in while it sends a reply that does not fit
    the socket, so who sends here must not wait for it without anybody reading: a sender whose frame does not
    fit either reads meanwhile, for all, unless another thread does so already. And what nobody waits for and
    nobody sends behind holds up no one: the worker gives such a connection up in time, and it is mended.

    Args:
        sock: the connection.
        limit: the bytes of the largest reply.
    """

    BREAKS = (OSError, DecodeError, LimitError)

    def __init__(self, sock: socket.socket, limit: int) -> None:
        super().__init__(limit)
        self._socket = sock
        self._reader = Reader(sock)
        self._cut = False  # nothing more can be sent
        self._poll = select.poll()
        self._poll.register(sock)
        # Closed when nobody holds the stream, not as soon as it is broken: the number of a socket that is
        # closed goes to the next one that is opened, and another thread may be about to read.
        weakref.finalize(self, sock.close)

    def greet(self, greeting: bytes, until: float, channel: UnixChannel) -> Welcome | Failure:
        """Say who calls, and hear who answers. Until then the channel may be closed.

        Raises:
            OSError: no answer came.
            DecodeError: something else did; VersionError where it was of another version.
            ConnectionLost: the channel was closed.
        """
        sock, intake = self._socket, GreetingIntake()
        sock.settimeout(TICK)
        with suppress(BrokenPipeError):  # who was turned away at once can read why
            sock.sendall(greeting)
        while (said := self._reader.take(intake)) is None:
            channel.check_open()
            try:
                self._reader.receive()
            except TimeoutError:
                if time.monotonic() > until:
                    raise
        sock.settimeout(None)
        return framing.read_answer(said[1])

    def admit(self, key: bytes, length: int) -> None:
        """As `framing.Intake.admit`: replies to what was asked, of the size that is allowed.

        Raises:
            DecodeError: it is no reply to anything.
            LimitError: it is too large.
        """
        exchange = self._waiting.get(key)
        if exchange is None or not length:
            number = int.from_bytes(key, "little")
            raise DecodeError(f"a reply of {length} bytes came to frame {number}, which waits for none")
        if length > self._limit:
            exchange.error = LimitError(f"a reply of at most {self._limit} bytes is allowed, got {length}")
            self._settled(exchange)
            raise exchange.error

    def allocate(self, key: bytes, length: int) -> bytearray | memoryview:
        """As `framing.Intake.allocate`.

        Raises:
            LimitError: there is not so much.
        """
        try:
            return allocate(length)
        except LimitError as error:
            if (exchange := self._waiting.get(key)) is not None:
                exchange.error = error
                self._settled(exchange)
            raise

    def _send(self, exchange: Exchange) -> None:
        if self._cut:
            return
        try:
            framing.send(self._socket, exchange.key, exchange.frame, socket.MSG_DONTWAIT, self._await_room)
        except OSError:  # what the worker said before is read first: then the end of the stream shows
            self._cut_off()
        except BaseException:  # an interrupt: the frame may be there in part, and its caller waits no more
            self._cut_off()
            self._settled(exchange)
            raise

    def _receive(self) -> None:
        self._read_once(0)

    def _hang_up(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _cut_off(self) -> None:
        self._cut = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def _read_once(self, flags: int) -> None:
        self._reader.receive(flags)
        while (message := self._reader.take(self)) is not None:
            key, reply = message
            exchange = self._waiting.get(key)
            if exchange is not None:  # else it was given up meanwhile
                exchange.reply = reply
                self._settled(exchange)

    def _await_room(self) -> None:
        """Wait until the socket takes more of a frame; read what comes, unless somebody does."""
        with self._state:
            reads = not self._reading and self.broken is None
            self._reading |= reads
        if reads:
            self._read(self._read_until_room)
        else:
            self._poll.modify(self._socket, select.POLLOUT)
            self._poll.poll(_LOOK_MS)  # who reads now may stop, and then it is this thread's turn

    def _read_until_room(self) -> None:
        self._poll.modify(self._socket, select.POLLIN | select.POLLOUT)
        ((_, ready),) = self._poll.poll()
        if ready & select.POLLIN:
            with suppress(BlockingIOError):
                self._read_once(socket.MSG_DONTWAIT)


class UnixChannel(StreamChannel[Exchange]):
    """A channel to a worker that listens at a unix socket of this machine. Safe to use from many threads.

    Args:
        address: where.
        client: the caller's name.
        role: what the caller is.
        timeout: seconds after which a call without a reply is given up.
        patience: seconds for which a connection that cannot be made is tried again.
        limits: the largest reply that is accepted.

    Raises:
        ConnectionLost: there is no worker.
        PermissionDenied: it does not let this caller in.
        VersionError: it speaks another version of the protocol.
        InputError: the path or the name cannot be one.
    """

    def __init__(
        self,
        address: Address,
        client: str,
        role: Role = Role.CLIENT,
        *,
        timeout: float = 600.0,
        patience: float = 20.0,
        limits: WireLimits | None = None,
    ) -> None:
        super().__init__(address, timeout=timeout, patience=patience, limits=limits)
        self._greeting = framing.write_greeting(Greeting(client, role.value))
        self._start()

    def _open(self, until: float) -> Opened[Exchange]:
        stream = UnixStream(self._connect(), self._limit)
        try:
            said = stream.greet(self._greeting, max(until, time.monotonic() + _GREETING), self)
            if isinstance(said, Welcome):
                return Opened(stream, said.worker, said.client)
            if said.kind == _FULL:
                raise NoAnswer(said.message)
            raise to_error(Failure(said.kind, f"at {self.address}: {said.message}", said.worker))
        except BaseException as error:
            stream.cancel()
            if isinstance(error, VersionError):
                raise VersionError(f"the worker at {self.address}: {error}") from None
            if isinstance(error, DecodeError):
                raise ConnectionLost(f"at {self.address}: {error}", worker=self.worker) from None
            if isinstance(error, OSError):
                raise NoAnswer(str(error)) from None
            raise

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, framing.SEND_BUFFER)
            sock.settimeout(TICK)
            sock.connect(self.address.path)
            return sock
        except BaseException as error:
            sock.close()
            if isinstance(error, PermissionError):
                raise PermissionDenied(f"{self.address} is another user's", worker=self.worker) from None
            if isinstance(error, OSError) and error.errno is not None:
                raise NoAnswer(str(error)) from None
            if isinstance(error, OSError | ValueError):  # Python's own: too long, or a zero byte
                raise InputError(f"{self.address} cannot be a socket: {error}") from None
            raise

    def _exchange(self, key: bytes, frame: Frame, deadline: float) -> Exchange:
        return Exchange(key, frame, deadline)
