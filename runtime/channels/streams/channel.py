"""The caller's end: `StreamChannel` sends frames over streams, and sends them again when one breaks.

That is safe because a worker applies a request once. Frames of one lane keep their order, also over a break;
a call from another thread that need not wait for them takes a lane of its own. How a stream is opened, and
what goes over it, is for subclasses to say.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Generic

from planc.errors import PlancError
from runtime.channels.address import Address
from runtime.channels.streams.deadlines import watch
from runtime.channels.streams.stream import AnyExchange, Stream
from runtime.errors import ConnectionLost, DeadlineExceeded, WorkerError
from runtime.wire import Frame, WireLimits

_LANES = 8
"""Streams of one channel at most: so many calls are answered at the same time."""
_ATTEMPTS = 8
"""Streams on which a frame is sent at most: a worker that falls over it every time gets it no more."""


class NoAnswer(Exception):
    """No stream could be opened, but another try may find a worker. The text says why."""


@dataclass(frozen=True, slots=True)
class Opened(Generic[AnyExchange]):
    """A stream that a worker has taken, what it calls itself, and what it calls the caller."""

    stream: Stream[AnyExchange]
    worker: str
    client: str


class StreamChannel(ABC, Generic[AnyExchange]):
    """A channel to a worker that listens somewhere. Safe to use from many threads.

    Args:
        address: where.
        prefix: what the keys of its exchanges begin with.
        timeout: seconds after which a call without a reply is given up.
        patience: seconds for which a connection that cannot be made is tried again.
        limits: the largest reply that is accepted.

    Attributes:
        address: where.
        worker: the id of the worker there.
        client: the name that the caller has there.
        patience: as given.
        closed: whether `close` was called.
    """

    def __init__(
        self,
        address: Address,
        *,
        prefix: bytes = b"",
        timeout: float,
        patience: float,
        limits: WireLimits | None = None,
    ) -> None:
        self.worker = self.client = ""
        self.address = address
        self.patience = patience
        self.closed = False
        self._timeout = timeout
        self._limit = (limits or WireLimits()).frame_bytes
        self._keys = _keys(prefix)
        self._lock = threading.Lock()
        self._lanes: list[_Lane[AnyExchange]] = []

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
            return lane.begin(self._begun(frame)).reply()
        finally:
            lane.calls -= 1

    def post(self, frame: Frame) -> Ticket[AnyExchange]:
        """Send a frame without waiting for its reply. Frames that are posted arrive in order."""
        return self._lanes[0].begin(self._begun(frame))

    def close(self) -> None:
        """Break the streams. Calls that wait, and later ones, raise ConnectionLost."""
        with self._lock:
            self.closed = True
        for lane in list(self._lanes):
            lane.stream.cancel()

    def open(self, until: float) -> Stream[AnyExchange]:
        """A new stream to the same worker, tried for until then."""
        pause = 0.02
        while True:
            self.check_open()
            try:
                return self._known(self._open(until))
            except NoAnswer as error:
                if time.monotonic() + pause > until:
                    raise ConnectionLost(
                        f"no worker answers at {self.address} ({error})", worker=self.worker
                    ) from None
            time.sleep(pause)
            pause = min(2 * pause, 1.0)

    def check_open(self) -> None:
        """Go on only where the channel is not closed.

        Raises:
            ConnectionLost: it is.
        """
        if self.closed:
            raise ConnectionLost("the channel is closed", worker=self.worker)

    def give_up_late(self, now: float) -> None:
        """Give up the calls that are past their deadline."""
        for lane in list(self._lanes):
            lane.stream.give_up(now, self._late)

    def late(self, exchange: AnyExchange) -> bool:
        """Whether the deadline of an exchange has passed, in which case it is given up."""
        if exchange.deadline > time.monotonic():
            return False
        exchange.error = self._late()
        return True

    def refusal(self, broken: Exception | None) -> WorkerError | None:
        """The error of a stream that the worker refused for what was said on it: it would be so again."""
        return None

    @abstractmethod
    def _open(self, until: float) -> Opened[AnyExchange]:
        """Try once to open a stream; the worker has until then to greet.

        Raises:
            NoAnswer: there is none now.
            PlancError: another try would end the same.
        """

    @abstractmethod
    def _exchange(self, key: bytes, frame: Frame, deadline: float) -> AnyExchange:
        """A new exchange."""

    def _start(self) -> None:
        """Open the first stream. The last that a subclass does when it is made."""
        self._lanes.append(_Lane(self))
        watch(self)

    def _late(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"no reply came within {self._timeout:g} s: it may work on the request still", worker=self.worker
        )

    def _begun(self, frame: Frame) -> AnyExchange:
        return self._exchange(next(self._keys), frame, time.monotonic() + self._timeout)

    def _lane(self, ordered: bool) -> _Lane[AnyExchange]:
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
        if self.closed:  # meanwhile, and `close` has not seen it
            lane.stream.cancel()
        return lane

    def _known(self, opened: Opened[AnyExchange]) -> Stream[AnyExchange]:
        """The stream, if the worker is the one that it was before."""
        worker, client = opened.worker, opened.client
        if self.worker and (worker, client) != (self.worker, self.client):
            opened.stream.cancel()
            raise ConnectionLost(
                f"worker {worker!r} listens at {self.address} now and calls the caller {client!r}; "
                f"before it was {self.worker!r}, and {self.client!r}",
                worker=self.worker,
            )
        self.worker, self.client = worker, client
        return opened.stream


class Ticket(Generic[AnyExchange]):
    """A frame that was sent, and its reply to come."""

    __slots__ = ("_exchange", "_lane")

    def __init__(self, lane: _Lane[AnyExchange], exchange: AnyExchange) -> None:
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


class _Lane(Generic[AnyExchange]):
    """A stream that is mended when it breaks.

    Attributes:
        stream: the one that is open now.
        calls: how many callers wait for a reply on it.
    """

    def __init__(self, channel: StreamChannel[AnyExchange]) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self.calls = 0
        self.stream = channel.open(time.monotonic() + channel.patience)

    def __len__(self) -> int:
        return len(self.stream)

    def begin(self, exchange: AnyExchange) -> Ticket[AnyExchange]:
        """Send a frame, behind all before it."""
        with self._lock:
            self.stream.begin(exchange)
        return Ticket(self, exchange)

    def mend(self, broken: Stream[AnyExchange]) -> None:
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

    def _again(self, broken: Stream[AnyExchange], left: Sequence[AnyExchange]) -> None:
        refused = self._channel.refusal(broken.broken)
        if refused is not None:
            raise refused
        until = time.monotonic() + self._channel.patience
        if left:
            until = min(until, max(exchange.deadline for exchange in left))
        self.stream = self._channel.open(until)
        if self._channel.closed:  # meanwhile, and `close` has not seen it
            self.stream.cancel()
        for exchange in left:
            if self._channel.late(exchange):
                continue
            if exchange.attempts >= _ATTEMPTS:
                exchange.error = ConnectionLost(
                    f"the connection broke {exchange.attempts} times before a reply came",
                    worker=self._channel.worker,
                )
                continue
            self.stream.begin(exchange)


def _keys(prefix: bytes) -> Iterator[bytes]:
    """Names for the exchanges of a channel."""
    return (prefix + number.to_bytes(8, "little") for number in count())
