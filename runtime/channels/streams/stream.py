"""One stream to a worker, with the exchanges on it: frames go out in order, and so their replies come back.

Whoever waits for a reply reads the stream, for all that wait: no thread of its own stands between the socket
and the caller. A stream that broke is not mended here; `channel` moves what is unanswered to a new one.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Generic, TypeVar

from planc.errors import DecodeError
from runtime.wire import Frame


class Exchange:
    """A frame on its way, and its reply.

    Attributes:
        key: names the two on the stream.
        frame: what is sent.
        deadline: when to give up, by `time.monotonic`.
        reply: the whole reply, when it is there.
        error: why there will be none.
        attempts: the streams that it was on.
    """

    __slots__ = ("attempts", "deadline", "error", "frame", "key", "reply")

    def __init__(self, key: bytes, frame: Frame, deadline: float) -> None:
        self.key = key
        self.frame = frame
        self.deadline = deadline
        self.reply: bytearray | memoryview | None = None
        self.error: Exception | None = None
        self.attempts = 0

    @property
    def done(self) -> bool:
        return self.reply is not None or self.error is not None


AnyExchange = TypeVar("AnyExchange", bound=Exchange)


class Stream(ABC, Generic[AnyExchange]):
    """A stream that is open. Safe to use from many threads, but for `begin`: one thread at a time calls it.

    Args:
        limit: the bytes of the largest reply.

    Attributes:
        broken: why nothing more comes; None as long as it may.
    """

    BREAKS: ClassVar[tuple[type[Exception], ...]] = (OSError, DecodeError)
    """What reading raises when the stream is broken."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._state = threading.Condition()
        self._waiting: dict[bytes, AnyExchange] = {}
        self._reading = False
        self.broken: Exception | None = None

    def __len__(self) -> int:
        """How many exchanges are unanswered."""
        return len(self._waiting)

    def begin(self, exchange: AnyExchange) -> None:
        """Send a frame behind all before it. Whether that went well shows when its reply is waited for."""
        with self._state:
            exchange.attempts += 1
            self._waiting[exchange.key] = exchange
        self._send(exchange)

    def wait(self, exchange: AnyExchange) -> None:
        """Return when an exchange is done, or the stream is broken."""

        def read() -> None:
            while not exchange.done:
                self._receive()

        while True:
            with self._state:
                while self._reading and not exchange.done and self.broken is None:
                    self._state.wait()
                if exchange.done or self.broken is not None:
                    return
                self._reading = True
            self._read(read)

    def cancel(self) -> None:
        """Break the stream; who waits on it is woken."""
        self._hang_up()
        self._break(ConnectionError("the stream was given up"))

    def give_up(self, now: float, error: Callable[[], Exception]) -> None:
        """Give up the exchanges that are past their deadline. That breaks the stream, for the others too."""
        with self._state:
            late = [exchange for exchange in self._waiting.values() if exchange.deadline <= now]
            for exchange in late:
                exchange.error = error()
                del self._waiting[exchange.key]
        if late:
            self.cancel()

    def take_unanswered(self) -> list[AnyExchange]:
        """The exchanges without a reply, in order, once the stream is broken."""
        with self._state:
            left = list(self._waiting.values())
            self._waiting.clear()
            return left

    @abstractmethod
    def _send(self, exchange: AnyExchange) -> None:
        """Send a frame, or see to it that it is sent."""

    @abstractmethod
    def _receive(self) -> None:
        """Read once, and do with what came as it says. Raises one of `BREAKS` where nothing more comes."""

    @abstractmethod
    def _hang_up(self) -> None:
        """End the stream itself: whoever reads it or sends on it is woken."""

    def _read(self, read: Callable[[], None]) -> None:
        """Read as the one who reads for all, which the caller has become."""
        try:
            read()
        except self.BREAKS as error:
            self._hang_up()
            self._break(error)
        except BaseException:  # an interrupt: nobody knows how far the reading had come
            self.cancel()
            raise
        finally:
            with self._state:
                self._reading = False
                self._state.notify_all()

    def _settled(self, exchange: AnyExchange) -> None:
        """An exchange is done: wake who waits for it."""
        with self._state:
            self._waiting.pop(exchange.key, None)
            self._state.notify_all()

    def _break(self, error: Exception) -> None:
        with self._state:
            if self.broken is None:
                self.broken = error
            self._state.notify_all()
