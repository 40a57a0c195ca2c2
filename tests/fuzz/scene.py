"""A worker to be attacked: private data that must never leave, a policy, small limits, and a peer.

Deterministic: its ids and sessions are counted, so that the same frames give the same replies.
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass
from functools import cache
from unittest import mock

import torch

from planc.limits import Limits
from runtime.channels.base import Connection
from runtime.executor import RunBounds
from runtime.identity import Identity, Role
from runtime.limits import WorkerLimits
from runtime.messages import Apply, Body, Done, Get, Handle, Put, PutItem, Reply, Request, Slot, Values
from runtime.owner import OwnerHandle
from runtime.policy import ALL, NOTHING, Needs, Policy, Quota, Rights, Selection
from runtime.remote import handle as handles
from runtime.wire import Frame, WireLimits, decode, encode
from runtime.worker import Worker

CANARY = struct.unpack("<d", b"\x5a\xc3\x1f\x96\xe7\x7b\x42\x47")[0]
CANARY32 = struct.unpack("<f", struct.pack("<f", CANARY))[0]
CANARIES = (
    struct.pack("<d", CANARY),
    struct.pack("<ff", CANARY32, CANARY32),
    f"{CANARY:.6e}"[:7].encode(),
)
"""What the private elements look like in a reply: as bytes, as text, and rounded."""
EVE = Identity("eve")
MALLORY = Identity("mallory")
PEER = Identity("peer", Role.WORKER)
STRANGER = Identity("stranger")
ANN = Identity("ann")
QUOTA = Quota(
    bytes=2**20,
    run_seconds=0.5,
    message_bytes=2**20,
    plan_nodes=500,
    concurrent_runs=2,
    plans=48,
)
LIMITS = WorkerLimits(
    wire=WireLimits(frame_bytes=2**21, header_bytes=2**19, tensors=256, rank=8),
    plan=Limits(total_bytes=2**18, plans=32, depth=6, nodes=1000, ports=500),
    store_bytes=8 * 2**20,
    run=RunBounds(bytes=2**24, flops=2 * 10**8, nodes=20_000, seconds=0.5),
    plans=200,
    plan_bytes=4 * 2**20,
    executable_bytes=8 * 2**20,
    replay_window=64,
    replay_bytes=2**20,
    sessions=8,
    clients=32,
)
POLICY = Policy(
    peers=frozenset({"peer"}),
    default=Rights(move=frozenset({"peer"}), quota=QUOTA),
    clients={
        "mallory": Rights(
            search=Selection(tags=("#pub*",)),
            fetch=NOTHING,
            needs=Needs.ALWAYS,
            move=frozenset(),
            quota=QUOTA,
        ),
        "ann": Rights(use=ALL, quota=Quota(bytes=2**20)),
    },
    denied=frozenset({"stranger"}),
)


_FIRST = 5_000_000
"""Ids of the honest client: far from those that are attacked with."""


class Escaped(AssertionError):
    """Something that must never happen did."""


def leaks(data: bytes | bytearray | memoryview) -> bool:
    """Whether private elements are in these bytes."""
    whole = bytes(data)
    return any(canary in whole for canary in CANARIES)


class _Sink:
    """The way to the peer: swallows what it is sent, after a look for private elements."""

    def call(self, frame: Frame) -> bytearray:
        whole = frame if isinstance(frame, bytearray) else frame.join()
        if leaks(whole):
            raise Escaped("private elements were sent to a peer")
        message, _ = decode(whole)
        assert isinstance(message, Request)
        return encode(Reply(message.request_id, Done()))

    def close(self) -> None:
        """Nothing is held."""


class _Vouched:
    """A channel whose other end is who it says, and that remembers what was sent."""

    def __init__(self, worker: Worker, identity: Identity, sent: list[bytes]) -> None:
        self._worker, self._identity, self._sent = worker, identity, sent

    def call(self, frame: Frame) -> bytearray:
        whole = frame if isinstance(frame, bytearray) else frame.join()
        self._sent.append(bytes(whole))
        return self._worker.handle_frame(whole, self._identity)

    def close(self) -> None:
        """Nothing is held."""


def join(worker: Worker, identity: Identity, session: int) -> tuple[Connection, list[bytes]]:
    """A connection whose session is known, and the frames that are sent over it."""
    sent: list[bytes] = []
    connection = Connection(_Vouched(worker, identity, sent), identity.name)
    connection._session = session
    return connection, sent


def counted_ids() -> mock._patch[itertools.count[int]]:
    """Let handles made meanwhile count their ids from the same number every time."""
    return mock.patch.object(handles, "_ids", itertools.count(1000))


@cache
def _data() -> tuple[torch.Tensor, ...]:
    return (
        torch.full((4, 3), CANARY, dtype=torch.float64),
        torch.full((4, 3), CANARY32),
        torch.arange(12.0).reshape(4, 3),
    )


@dataclass(frozen=True)
class Scene:
    """A worker and who speaks to it."""

    worker: Worker
    private: tuple[int, ...]
    public: int


def scene(approved: str = "") -> Scene:
    """A fresh worker with its data; the owner approved one plan."""
    worker = Worker("bob", peers=lambda _to: _Sink(), limits=LIMITS, policy=POLICY)
    wide, narrow, public = _data()
    private = (
        worker.add(wide, tags=("#secret", "#wide"), private=True, name="wide"),
        worker.add(narrow, tags=("#secret",), private=True, name="narrow"),
    )
    offered = worker.add(public, tags=("#public",), name="public")
    if approved:
        worker.approve(approved)
    return Scene(worker, private, offered)


class Honest:
    """Clients that do nothing wrong, and expect right answers whatever others do."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._number = self._asked = 0
        self._ask(Put((PutItem(_FIRST, Slot(0)),)), torch.tensor([1.0, 2.0]))

    def check(self) -> None:
        """Compute with own and offered data, and fetch what came out.

        Raises:
            Escaped: the answer is not right.
        """
        self._number += 1
        new = _FIRST + self._number
        self._ask(Apply("aten.add", (Handle(_FIRST), float(self._number)), {}, (new,)))
        body, tensors = self._ask(Get((new, self._scene.public), False))
        if not isinstance(body, Values) or tensors[0].tolist() != [1.0 + self._number, 2.0 + self._number]:
            raise Escaped(f"an honest client was answered {body}")
        if tensors[1].sum().item() != 66.0:
            raise Escaped("offered data has changed")
        owner = OwnerHandle(join(self._scene.worker, Identity("owner", Role.OWNER), 1 + self._number)[0])
        owner.status()
        owner.objects()
        owner.plans()
        owner.pending()

    def _ask(self, body: Body, *tensors: torch.Tensor) -> tuple[object, list[torch.Tensor]]:
        self._asked += 1
        release = (_FIRST + self._number - 1,) if self._number > 1 else ()
        request = Request("ann", 5, self._asked, self._asked - 1, release, body)
        reply, given = decode(self._scene.worker.handle_frame(encode(request, tensors), ANN))
        if not isinstance(reply, Reply) or reply.request_id != self._asked:
            raise Escaped(f"an honest client was answered {reply}")
        return reply.body, given
