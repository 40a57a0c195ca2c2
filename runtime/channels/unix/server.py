"""The worker's end on the same machine: a thread a connection, which reads a frame, has it answered, replies.

A connection is let in where its other end runs as the user that the worker runs as: the file's mode says so,
and the system is asked once more. Nobody else is, root neither, unless the worker itself is root's.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from planc.errors import DecodeError, InputError, LimitError, PlancError, VersionError
from runtime.channels.address import Address
from runtime.channels.streams.memory import Room
from runtime.channels.streams.server import Closing, FrameHandler, Listening, ServerLimits
from runtime.channels.unix import framing
from runtime.channels.unix.framing import Greeting, GreetingIntake, Reader, Welcome
from runtime.errors import CredentialsError, PermissionDenied, to_failure
from runtime.identity import Identity
from runtime.messages import Failure
from runtime.wire import Frame

_log = logging.getLogger(__name__)
_BACKLOG = 128
"""Connections that the system keeps until they are looked at."""
_NO_MORE_FILES = 0.1
"""Seconds to wait where the process cannot have another socket; those that close make room."""
_REFUSAL = 1000
"""Characters of a refusal at most."""
_TIMEVAL = struct.Struct("@ll")
_UCRED = struct.Struct("@iII")
_PEERCRED = getattr(socket, "SO_PEERCRED", None)
"""Where a system has none, the mode of the file says alone who may connect."""
Authenticate = Callable[[Greeting], Identity]
"""Who connects, by what they said; CredentialsError where that is nobody."""


class UnixListening(Listening):
    """A server that listens at a unix socket.

    Args:
        worker: what answers the frames.
        address: where to listen. The directory must be there.
        authenticate: who connects.
        limits: what it takes on.

    Raises:
        InputError: the address is taken, or cannot be listened at.
    """

    def __init__(
        self,
        worker: FrameHandler,
        address: Address,
        authenticate: Authenticate,
        limits: ServerLimits | None = None,
    ) -> None:
        super().__init__(worker, limits)
        self.address = address
        self._authenticate = authenticate
        self._open = set[socket.socket]()
        self._door = _bind(address)
        threading.Thread(target=self._accept, name=f"planc-{worker.id}-accept", daemon=True).start()

    def _shut_door(self) -> None:
        # The file first: once nobody answers at it, another worker may take the place.
        with suppress(OSError):
            os.unlink(self.address.path)
        with suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts, which closes it

    def _hang_up(self) -> None:
        with self._state:
            for sock in self._open:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        """Give every connection a thread. They end with the process: Python does not wait for them."""
        with self._door:
            while not self._closing:
                try:
                    sock, _ = self._door.accept()
                except OSError as error:
                    if not self._closing:
                        _log.warning("worker %r cannot take a connection: %s", self._worker.id, error)
                        time.sleep(_NO_MORE_FILES)
                    continue
                self._admit(sock)

    def _admit(self, sock: socket.socket) -> None:
        with self._state:
            if self._closing:
                sock.close()
                return
            full = len(self._open) >= self._limits.streams
            if not full:
                self._open.add(sock)
        if full:
            error = LimitError(f"{self._limits.streams} connections are open, as many as are allowed")
            self._refuse(sock, error)
            sock.close()
            return
        try:
            name = f"planc-{self._worker.id}"
            threading.Thread(target=self._serve, args=(sock,), name=name, daemon=True).start()
        except RuntimeError as error:  # the system has no more threads
            _log.warning("worker %r cannot take a connection: %s", self._worker.id, error)
            self._dismiss(sock)

    def _dismiss(self, sock: socket.socket) -> None:
        with self._state:  # `_hang_up` must not meet a number that has become another's
            self._open.discard(sock)
            sock.close()

    def _serve(self, sock: socket.socket) -> None:
        """One connection, to its end."""
        try:
            sock.settimeout(None)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, framing.SEND_BUFFER)
            self._session(sock, Reader(sock))
        except Closing:
            pass
        except (ConnectionError, TimeoutError, DecodeError) as error:
            _log.debug("worker %r: a connection ended: %s", self._worker.id, error)
        except Exception as error:
            kind = type(error).__name__
            _log.error("worker %r: a connection failed: %s", self._worker.id, kind, exc_info=error)
        finally:
            self._dismiss(sock)

    def _session(self, sock: socket.socket, reader: Reader) -> None:
        try:
            identity = self._identify(sock, reader)
            with self._let_in(identity.name):
                sock.sendall(framing.write_greeting(Welcome(self._worker.id, identity.name)))
                self._converse(sock, reader, identity)
        except (PermissionDenied, LimitError, VersionError) as error:
            self._refuse(sock, error)

    def _identify(self, sock: socket.socket, reader: Reader) -> Identity:
        """Who is at the other end.

        Raises:
            PermissionDenied: nobody who may be.
            VersionError: who speaks another version.
            DecodeError, OSError: they do not say it.
        """
        try:
            _check_user(sock)
            said = framing.read_greeting(self._greeting(sock, reader))
            return self._authenticate(said)
        except (PermissionDenied, CredentialsError) as error:
            _log.warning("worker %r refused a connection: %s", self._worker.id, error.message)
            raise PermissionDenied(error.message) from None

    def _greeting(self, sock: socket.socket, reader: Reader) -> bytearray | memoryview:
        _set_patience(sock, self._limits.greeting)
        until = time.monotonic() + self._limits.greeting
        while (message := reader.take(GreetingIntake())) is None:
            try:
                reader.receive()
            except BlockingIOError:
                raise TimeoutError("no greeting came") from None
            if time.monotonic() > until:  # a byte now and then is none
                raise TimeoutError("no greeting came in time")
        _set_patience(sock, self._limits.patience)
        return message[1]

    def _converse(self, sock: socket.socket, reader: Reader, identity: Identity) -> None:
        """Everything that comes is answered in the order it came."""
        intake = _Intake(self._room, identity.name)
        try:
            while True:
                try:
                    key, frame = _next(reader, intake)
                    intake.end()
                except LimitError as error:
                    # The client hears why, and what it has not read of its frame is left: so this is the end.
                    with self._answering():
                        self._reply(sock, intake.key, self._too_large(error))
                    return
                with self._answering():
                    reply = self._answer(frame, identity)
                    del frame
                    self._reply(sock, key, reply)
                    del reply
        finally:
            intake.end()

    def _reply(self, sock: socket.socket, key: bytes, reply: Frame) -> None:
        def full() -> None:
            raise TimeoutError("a reply was not read for too long")

        framing.send(sock, key, reply, 0, full)

    def _refuse(self, sock: socket.socket, error: PlancError) -> None:
        failure = to_failure(error, self._worker.id)
        said = Failure(failure.kind, failure.message[:_REFUSAL], failure.worker)
        with suppress(OSError, InputError):
            sock.sendall(framing.write_greeting(said))


class _Intake:
    """What one connection may send: see `framing.Intake`.

    Attributes:
        key: of the frame that came last.
    """

    def __init__(self, room: Room, client: str) -> None:
        self.key = b""
        self._room = room
        self._client = client
        self._begun = 0

    def admit(self, key: bytes, length: int) -> None:
        self.key = key
        self._room.check(length)

    def allocate(self, key: bytes, length: int) -> bytearray | memoryview:
        memory = self._room.begin(self._client, length)
        self._begun = length
        return memory

    def end(self) -> None:
        """The frame that was begun is whole, or given up."""
        if self._begun:
            self._room.end(self._client, self._begun)
            self._begun = 0


def _next(reader: Reader, intake: _Intake) -> tuple[bytes, bytearray | memoryview]:
    """The next frame. Between frames a client may be quiet for as long as it likes."""
    while (message := reader.take(intake)) is None:
        try:
            reader.receive()
        except BlockingIOError:
            if reader.midway:
                raise TimeoutError("a frame did not grow for too long") from None
    return message


def _set_patience(sock: socket.socket, seconds: float) -> None:
    """How long the system waits for bytes, or for room for some; then it is a BlockingIOError."""
    whole = int(seconds)
    timeval = _TIMEVAL.pack(whole, int((seconds - whole) * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)


def _check_user(sock: socket.socket) -> None:
    """Refuse those that run as another user.

    Raises:
        PermissionDenied: they do.
    """
    if _PEERCRED is None:
        return
    _, user, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, _PEERCRED, _UCRED.size))
    if user != os.geteuid():
        raise PermissionDenied(f"the worker runs as user {os.geteuid()}, and the caller as user {user}")


def _bind(address: Address) -> socket.socket:
    door = socket.socket(socket.AF_UNIX)
    try:
        _clear_socket(address.path)
        door.settimeout(None)
        door.bind(address.path)
        os.chmod(address.path, 0o600)  # nobody can connect before the next line
        door.listen(_BACKLOG)
        return door
    except BaseException as error:
        door.close()
        if isinstance(error, OSError | ValueError):
            raise InputError(f"cannot listen at {address}: {error}") from None
        raise


def _clear_socket(path: str) -> None:
    """Remove a socket that nobody listens at any more; leave anything else alone.

    Raises:
        InputError: it is no socket, or somebody listens.
    """
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
