"""Cases by seed: real frames changed in their bytes, in their fields, in their order. Sends nothing."""

from __future__ import annotations

import copy
import hashlib
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from planc.ops import all_ops
from runtime.identity import Identity
from tests.fuzz.attacks import attack, run_of
from tests.fuzz.corpus import SESSION, Corpus
from tests.fuzz.scene import EVE, MALLORY, PEER, STRANGER

PREFIX = struct.Struct("<7sBIIQ")
_NUMBERS = [0, 1, -1, 2, 3, 7, 8, 63, 64, 255, 2**15, 2**20, 2**31 - 1, 2**31, 2**32, 2**40, 2**53, 2**62]
_NUMBERS += [2**63 - 1, 2**63, 2**64 - 1, -2, -(2**31), -(2**62), -(2**63)]
_FLOATS = [0.0, -0.0, 0.5, 1.5, float("nan"), float("inf"), float("-inf"), 1e308, -1e308, 5e-324, 1e18]
_TEXTS = ["", "eve", "ann", "bob", "peer", "owner", "mallory", "#secret", "#plan", "*", "\x00", "é" * 100]
_TEXTS += ["__import__", "__class__", "__init__", "os.system", "aten.__class__", "torch.ops.aten.add"]
_TEXTS += ["antigravity", "this", "builtins.eval", "aten.load", "aten.as_strided", "aten.set_", "prims.iota"]
_TEXTS += [
    "../../etc/passwd",
    "a" * 256,
    "a" * 257,
    "a" * 5000,
    "%s%n",
    "{0.__class__}",
    "f32",
    "f64",
    "bool",
]
_TAGS = ["request", "reply", "put", "get", "copy", "free", "search", "list", "clear", "transfer", "apply"]
_TAGS += ["backward", "grad", "zero-grad", "require-grad", "step", "install", "run", "steps", "fetch-plan"]
_TAGS += ["plans", "uninstall", "status", "owner-objects", "owner-plans", "pending", "approve", "deny"]
_TAGS += ["done", "values", "failure"]
_BOMBS = [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"]
_BOMBS += [b"\xc9\xff\xff\xff\xff\x01", b"\xdc\xff\xff", b"\xde\xff\xff", b"\x91" * 3000, b"\x81\xa1a" * 2000]
_BOMBS += [b"\x91" * 40_000, b"\x82\xa1a\x01\xa1a\x02", b"\xdd\x00\x01\x00\x00" + b"\xc0" * 65_536, b"\xc1"]
_BOMBS += [
    b"\xdc\xff\xff" + b"\x01" * 65_535,
    b"\xcb" + b"\xff" * 8,
    b"\xd6\xff" + b"\x00" * 4,
    b"\xda\xff\xff",
]
_OPS = [definition.name for definition in all_ops()]


@dataclass(frozen=True)
class Case:
    """What is sent in one go.

    Attributes:
        kind: how it was made.
        identity: who sends it.
        frames: in order.
    """

    kind: str
    identity: Identity
    frames: tuple[bytes, ...]


class Mutator:
    """Makes cases. The same random numbers and corpus make the same cases."""

    def __init__(self, rng: random.Random, corpus: Corpus) -> None:
        self._rng = rng
        self._corpus = corpus
        self._next = 10_000
        self._headers = [_header(frame) for frame in corpus.frames]
        self._plans = [msgspec.msgpack.decode(plan) for plan in corpus.plans]
        self._names = [hashlib.sha256(plan).hexdigest() for plan in corpus.plans]
        self._last: list[bytes] = []

    def case(self) -> Case:
        """The next case."""
        rng = self._rng
        identity = rng.choices([EVE, MALLORY, PEER, STRANGER], [80, 12, 7, 1])[0]
        kind, weight = zip(*_KINDS, strict=True)
        make: Callable[[Mutator], list[bytes]] = rng.choices(kind, weight)[0]
        frames = make(self)
        if identity is not EVE and make is not Mutator.noise:
            frames = [_as_client(frame, identity.name) for frame in frames]
        if make is not Mutator.repeated:
            self._last = [*self._last[-20:], *frames]
        return Case(make.__name__, identity, tuple(frames))

    def noise(self) -> list[bytes]:
        """Random bytes, with and without a true beginning."""
        rng = self._rng
        data = rng.randbytes(rng.choice([0, 1, 20, 24, 40, 64, 100, 1000]))
        if rng.random() < 0.5:
            length = rng.choice([len(data), rng.randrange(200), 2**32 - 1])
            total = 24 + len(data) if rng.random() < 0.8 else abs(rng.choice(_NUMBERS[:20]))
            data = PREFIX.pack(b"\x8bplancw", 1, length & 0xFFFFFFFF, 0, total) + data
        return [data]

    def flipped(self) -> list[bytes]:
        """A real frame with some bits turned."""
        frame = bytearray(self._fresh())
        for _ in range(self._rng.choice([1, 1, 1, 2, 3, 8])):
            frame[self._rng.randrange(len(frame))] ^= 1 << self._rng.randrange(8)
        return [bytes(frame)]

    def cut(self) -> list[bytes]:
        """A real frame that ends too early or too late."""
        frame, rng = self._fresh(), self._rng
        if rng.random() < 0.5:
            frame = frame[: rng.randrange(len(frame))]
        else:
            frame = frame + rng.randbytes(rng.randrange(1, 100))
        return [_announce(frame, len(frame)) if rng.random() < 0.5 else frame]

    def lengths(self) -> list[bytes]:
        """A real frame whose prefix says something else."""
        frame, rng = bytearray(self._fresh()), self._rng
        at, form = rng.choice([(0, "<Q"), (7, "<B"), (8, "<I"), (12, "<I"), (16, "<Q")])
        size = struct.calcsize(form)
        (old,) = struct.unpack_from(form, frame, at)
        new = rng.choice([old + 1, old - 1, old + 64, rng.choice(_NUMBERS), 0])
        struct.pack_into(form, frame, at, new % 2 ** (8 * size))
        return [bytes(frame)]

    def spliced(self) -> list[bytes]:
        """The beginning of one frame with the end of another."""
        a, b, rng = self._fresh(), rng_choice(self._rng, self._corpus.frames), self._rng
        whole = a[: rng.randrange(len(a))] + b[rng.randrange(len(b)) :]
        return [_announce(whole, len(whole))]

    def bombs(self) -> list[bytes]:
        """Few bytes in the header that announce much, or nest deeply."""
        header, rng = copy.deepcopy(self._pick()), self._rng
        bomb = rng.choice(_BOMBS)
        if rng.random() < 0.3:
            return [_frame(bomb, b"")]
        parent, key = rng.choice(list(_places(header)))
        parent[key] = msgspec.Raw(bomb)
        return [_frame(msgspec.msgpack.encode(header), b"")]

    def fields(self) -> list[bytes]:
        """A real request with other values in some of its fields."""
        out: list[bytes] = []
        for _ in range(self._rng.choice([1, 1, 1, 2])):
            at = self._rng.randrange(len(self._headers))
            header = copy.deepcopy(self._headers[at])
            for _ in range(self._rng.choice([1, 1, 2, 3])):
                inner = header[0] if header and isinstance(header[0], list) else header
                self._change(inner if self._rng.random() < 0.9 else header)
            self._number(header)
            out.append(_frame(_encode(header), _data_of(self._corpus.frames[at])))
        return out

    def repeated(self) -> list[bytes]:
        """Frames of before: again, in another order, of other sessions."""
        rng = self._rng
        pool = self._last or [self._fresh()]
        frames = [rng.choice(pool) for _ in range(rng.randrange(1, 4))]
        if rng.random() < 0.3:
            frames = [rng_choice(rng, self._corpus.frames), *frames]
        return frames

    def attacks(self) -> list[bytes]:
        """Requests in good form that ask for too much, or for what they may not have."""
        out: list[bytes] = []
        for body, data in attack(self._rng, self._corpus):
            self._next += 1
            request = ["request", "eve", SESSION, self._next, 0, [], body]
            out.append(_frame(_encode([request, data[0]]), data[1]))
        return out

    def plans(self) -> list[bytes]:
        """A plan with another value somewhere, under its true id; and a run of it, if it is one."""
        rng = self._rng
        at = rng.randrange(len(self._plans))
        if rng.random() < 0.15:
            data = bytearray(self._corpus.plans[at])
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            plan = bytes(data)
        else:
            document = copy.deepcopy(self._plans[at])
            for _ in range(rng.choice([1, 1, 1, 2, 3])):
                body = document[2] if len(document) > 2 and isinstance(document[2], list) else document
                self._change(body if rng.random() < 0.98 else document)
            plan = _encode(document)
        name = hashlib.sha256(plan).hexdigest()
        self._next += 2
        install = ["request", "eve", SESSION, self._next - 1, 0, [], ["install", name, plan, {}, [], ""]]
        frames = [_frame(_encode([install, []]), b"")]
        run = run_of(rng, plan, name)
        if run is not None:
            body, table, elements = run
            request = ["request", "eve", SESSION, self._next, 0, [], body]
            frames.append(_frame(_encode([request, table]), elements))
        return frames

    def _fresh(self) -> bytes:
        """A real frame, mostly under a number that is new."""
        at = self._rng.randrange(len(self._headers))
        frame = self._corpus.frames[at]
        if self._rng.random() < 0.2:
            return frame
        header = copy.deepcopy(self._headers[at])
        self._number(header)
        return _frame(_encode(header), _data_of(frame))

    def _pick(self) -> Any:
        return self._rng.choice(self._headers)

    def _number(self, header: Any) -> None:
        if self._rng.random() < 0.95 and header and isinstance(header[0], list) and len(header[0]) > 4:
            self._next += 1
            header[0][3] = self._next
            header[0][2] = SESSION if self._rng.random() < 0.95 else self._rng.randrange(20)

    def _change(self, item: Any) -> None:
        rng = self._rng
        places = list(_places(item))
        if not places:
            return
        parent, key = rng.choice(places)
        match rng.randrange(10):
            case 0:
                other, there = rng.choice(places)
                parent[key] = copy.deepcopy(other[there])
            case 1 if isinstance(parent, list):
                del parent[key]
            case 2 if isinstance(parent, list):
                parent.insert(key, copy.deepcopy(parent[key]))
            case 3 if isinstance(parent, list):
                rng.shuffle(parent)
            case 4 if isinstance(parent[key], (int, float)):
                parent[key] = parent[key] + rng.choice([1, -1, 2, 64])
            case _:
                parent[key] = self._value(parent[key])

    def _value(self, old: object) -> object:
        """Another value, mostly of the same type."""
        rng = self._rng
        kind = type(old) if rng.random() < 0.7 else rng.choice([int, float, str, bytes, list, bool, dict])
        if kind is bool or kind is type(None):
            return rng.choice([True, False, None])
        if kind is int:
            return rng.choice(_NUMBERS) if rng.random() < 0.6 else rng.choice(self._corpus.ids)
        if kind is float:
            return rng.choice(_FLOATS)
        if kind is str:
            return rng.choice([_TEXTS, _TAGS, _OPS, self._names][rng.randrange(4)])
        if kind is bytes:
            return rng.choice([b"", b"\x00", rng.randbytes(30), rng_choice(rng, self._corpus.plans)])
        if kind is dict:
            return {rng.choice(["dim", "size", "x", "__class__", "lr"]): rng.choice(_NUMBERS)}
        depth = rng.choice([0, 1, 1, 1, 5, 60])
        value: object = [rng.choice(_NUMBERS) for _ in range(rng.choice([0, 1, 2, 16, 17, 300]))]
        for _ in range(depth):
            value = [value]
        return value


_KINDS = (
    (Mutator.noise, 5),
    (Mutator.flipped, 14),
    (Mutator.cut, 4),
    (Mutator.lengths, 4),
    (Mutator.spliced, 4),
    (Mutator.bombs, 5),
    (Mutator.fields, 30),
    (Mutator.repeated, 8),
    (Mutator.attacks, 14),
    (Mutator.plans, 12),
)


def rng_choice(rng: random.Random, items: tuple[bytes, ...]) -> bytes:
    """One of them."""
    return items[rng.randrange(len(items))]


def _places(item: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in lists and maps, as container and key."""
    stack = [item]
    while stack:
        inner = stack.pop()
        for key in range(len(inner)) if isinstance(inner, list) else list(inner):
            yield inner, key
            if isinstance(inner[key], (list, dict)):
                stack.append(inner[key])


def _encode(item: Any) -> bytes:
    """As msgpack; a number that does not fit becomes the largest one."""
    try:
        return msgspec.msgpack.encode(item)
    except (OverflowError, UnicodeEncodeError, RecursionError):
        return msgspec.msgpack.encode([2**64 - 1])


def _header(frame: bytes) -> Any:
    length = PREFIX.unpack_from(frame)[2]
    return msgspec.msgpack.decode(frame[PREFIX.size : PREFIX.size + length])


def _data_of(frame: bytes) -> bytes:
    start = PREFIX.size + PREFIX.unpack_from(frame)[2]
    return frame[(start + 63) // 64 * 64 :]


def _frame(header: bytes, data: bytes) -> bytes:
    """A frame around a header, right in all that the prefix says."""
    gap = -(PREFIX.size + len(header)) % 64
    total = PREFIX.size + len(header) + gap + len(data)
    return PREFIX.pack(b"\x8bplancw", 1, len(header), 0, total) + header + bytes(gap) + data


def _announce(frame: bytes, total: int) -> bytes:
    """The frame with this total in its prefix."""
    return frame[:16] + struct.pack("<Q", total) + frame[24:] if len(frame) >= 24 else frame


def _as_client(frame: bytes, name: str) -> bytes:
    """The frame in another's name, where it still is one."""
    try:
        header = _header(frame)
        header[0][1] = name
        return _frame(_encode(header), _data_of(frame))
    except Exception:  # not readable: what cannot be changed goes as it is
        return frame
