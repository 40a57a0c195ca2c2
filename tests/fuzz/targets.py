"""What is attacked: a worker's frames here, `streams` and `sockets` there; and what must hold of a case."""

from __future__ import annotations

import logging
import random
from typing import Protocol

from runtime import messages as m
from runtime.errors import _BY_KIND as KNOWN_KINDS
from runtime.identity import Identity
from runtime.wire import decode
from tests.fuzz.corpus import Corpus
from tests.fuzz.mutate import Case, Mutator
from tests.fuzz.scene import EVE, Escaped, Honest, leaks, scene

_RESTORE = 25
"""Cases after which objects that an attacker deleted are put again: requests need something to work on."""
_HONEST = 200
"""Cases between looks at how honest clients fare."""


class Target(Protocol):
    """Something that is attacked, in a state that depends on the cases before."""

    def next(self) -> Case:
        """The next case."""
        ...

    def run(self, case: Case) -> None:
        """Try a case.

        Raises:
            Escaped: what must hold does not.
        """
        ...

    def close(self) -> None:
        """Give up what it holds."""
        ...


class _Faults(logging.Handler):
    """Keeps the last exception that a worker logged as a fault of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.last: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.levelno >= logging.ERROR:
            self.last = record.exc_info[1]


FAULTS = _Faults()


def listen_to_faults() -> None:
    """Hear of workers' faults, and print none of what they log."""
    log = logging.getLogger("runtime")
    log.propagate = False
    log.setLevel(logging.ERROR)
    if FAULTS not in log.handlers:
        log.addHandler(FAULTS)


def check_reply(reply: bytes | bytearray | memoryview) -> m.Reply:
    """A reply that came for a case.

    Raises:
        Escaped: it is not in good form, admits a fault, or has private elements in it.
    """
    if leaks(reply):
        raise Escaped("private elements are in a reply")
    message, tensors = decode(bytearray(reply))
    if not isinstance(message, m.Reply):
        raise Escaped(f"the reply is a {type(message).__name__}")
    body = message.body
    if isinstance(body, m.Failure):
        if body.kind == "internal":
            fault, FAULTS.last = FAULTS.last, None
            raise Escaped(f"a fault of the worker: {body.message}") from fault
        if body.kind not in KNOWN_KINDS:
            raise Escaped(f"an unknown kind of failure: {body.kind}")
        if len(reply) > 64 * 1024:
            raise Escaped(f"a failure of {len(reply)} bytes")
    if isinstance(body, m.Values):
        slots = [item.index for item in body.items if isinstance(item, m.Slot)]
        if any(index >= len(tensors) for index in slots):
            raise Escaped("a slot means no tensor")
    return message


class Frames:
    """`Worker.handle_frame`, all of a worker's messages."""

    def __init__(self, corpus: Corpus, rng: random.Random) -> None:
        self._corpus = corpus
        self._mutator = Mutator(rng, corpus)
        self._scene = scene(corpus.approved)
        self._honest = Honest(self._scene)
        self._cases = 0
        for frame in corpus.setup:
            self._ask(frame, EVE)

    def next(self) -> Case:
        return self._mutator.case()

    def run(self, case: Case) -> None:
        self._cases += 1
        for frame in case.frames:
            self._ask(frame, case.identity)
        if self._cases % _RESTORE == 0:
            self._restore()
        if self._cases % _HONEST == 0:
            self._honest.check()

    def close(self) -> None:
        self._scene.worker.close()

    def _ask(self, frame: bytes, identity: Identity) -> None:
        check_reply(self._scene.worker.handle_frame(bytearray(frame), identity))

    def _restore(self) -> None:
        """Give the attacker back what a mutated request made it delete."""
        store = self._scene.worker._site.store
        if all(store.get(id) is not None for id in (1, 2, 5, 1000)):
            return
        for identity in (EVE,):
            clear = m.Request(identity.name, 9, self._cases, 0, (), m.Clear())
            self._scene.worker.handle(clear, (), identity)
        for frame in self._corpus.setup:
            message, tensors = decode(bytearray(frame))
            assert isinstance(message, m.Request)
            again = m.Request(message.client, 10 + self._cases, message.request_id, 0, (), message.body)
            self._scene.worker.handle(again, tensors, EVE)


__all__ = ["FAULTS", "Frames", "Target", "check_reply", "listen_to_faults"]
