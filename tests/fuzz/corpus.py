"""Real frames to begin with: one or more for every type of message, and plans of every form."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

import planc
from planc.codec import encode
from planc.ir import Graph
from planc.ir.constants import digest
from runtime import cohorts as c
from runtime import messages as m
from runtime.channels.base import Connection
from runtime.remote.handle import WorkerHandle
from runtime.wire import decode
from tests.fuzz.scene import EVE, counted_ids, join, scene
from tests.runtime.helpers import adding, constant_sum, identity, picking, stepping

SESSION = 3
_TEXTS = (
    "plan total(x: f64[4, 3], y: f32[n, 3]) -> f64[] { return sum(x) }",
    """plan fit(x: f32[n, 3], y: f32[n], lr: f32[], param w: f32[3]) -> (losses, param w) {
      for epoch in range(2) {
        for xb: f32[rows, 3], yb in batches(x, y, size=2) {
          e = xb @ w - yb
          w = w - lr * (t(xb) @ e) / rows
          collect loss = mean(e * e)
        }
        collect losses = loss
      }
      return losses, w
    }""",
    """plan noisy(x: f32[b, 8], key rng: i64[]) -> (y: f32[b, 8], key rng) {
      here, there, next = random.split(rng, count=3)
      y, _ = dropout(here, x, p=0.1)
      return y + 0.01 * random.randn(there, size=[b, 8], dtype=f32), next
    }""",
    """plan twice(y: f32[k]) -> f32[k] { return y * 2 }
    plan calls(x: f32[n]) -> f32[n] { return twice(twice(x)) + 1 }""",
    """plan pictures(x: f32[b, 2, 8, 8], w: f32[3, 2, 3, 3]) -> f32[b, 3, 6, 6] {
      return relu(aten.convolution(x, w, none, stride=[1, 1], padding=[0, 0], dilation=[1, 1]))
    }""",
    "plan large() -> f32[50000000, 20000] { return full([50000000, 20000], 1.0, dtype=f32) }",
    "plan wide(x: f32[1]) -> f32[70000000000] { return expand(x, [70000000000]) }",
)


@dataclass(frozen=True)
class Corpus:
    """What mutations start from.

    Attributes:
        frames: requests in the order that they were sent, each answered.
        setup: those of them that put objects and install plans, and free nothing.
        kinds: the messages that are among them, by name.
        plans: canonical bytes.
        approved: the id of the plan that the owner approved.
        ids: the objects that are mentioned.
    """

    frames: tuple[bytes, ...]
    setup: tuple[bytes, ...]
    kinds: frozenset[str]
    plans: tuple[bytes, ...]
    approved: str
    ids: tuple[int, ...]


def _graphs() -> list[Graph]:
    built = [adding(), identity(), stepping(), picking(), constant_sum(torch.arange(3.0))]
    return built + [planc.parse(text).graph for text in _TEXTS]


@cache
def corpus() -> Corpus:
    """The corpus, made once."""
    graphs = _graphs()
    plans = tuple(encode(graph) for graph in graphs)
    approved = hashlib.sha256(plans[5]).hexdigest()
    with counted_ids():
        stage = scene(approved)
        connection, sent = join(stage.worker, EVE, SESSION)
        held: list[object] = []
        bob = WorkerHandle("bob", connection)
        _objects(bob, held)
        _computing(connection, stage.private, stage.public)
        _plans(connection, graphs, plans, stage.private)
        _owners(connection, approved)
        setup_until = len(sent)
        _tidying(bob, connection)
        frames = tuple(sent)
        held.clear()
        del bob
        gc.collect()
    kinds = [_kind(frame) for frame in frames]
    setup = [
        frame
        for frame, kind in zip(frames[:setup_until], kinds, strict=False)
        if kind in ("Put", "Install", "RequireGrad")
    ]
    ids = sorted(_ids(frames) | {*stage.private, stage.public})
    return Corpus(frames, tuple(setup), frozenset(kinds), plans, approved, tuple(ids))


def _objects(bob: WorkerHandle, held: list[object]) -> None:
    x = bob.send(torch.arange(12.0).reshape(4, 3), tags=("#x", "#y"), description="numbers")
    flags = bob.send(torch.tensor([True, False]))
    secret = bob.send(torch.tensor([1.0, 2.0]), private=True, allowed_users=("ann",), tags=("#mine",))
    whole = bob.send(torch.arange(6).reshape(2, 3))
    half = bob.send(torch.ones(3, dtype=torch.bfloat16))
    empty = bob.send(torch.empty(0, 5))
    held += [x, flags, secret, whole, half, empty]
    y = x + 1
    held += [y, x @ x.t(), x.copy(), torch.cat([x, y]), x.to(torch.float64), x.argmax(dim=1)]
    x.copy().get()
    held += [bob.search("#x"), bob.objects]
    w = bob.send(torch.ones(3, requires_grad=True))
    held.append(w)
    loss = (x.copy() @ w).sum()
    loss.backward()
    held += [loss, w.grad, w]


def _computing(connection: Connection, private: Sequence[int], public: int) -> None:
    ask = connection.call
    ask(m.Put((m.PutItem(1, m.Slot(0)), m.PutItem(2, m.Slot(1), requires_grad=True))), _pair())
    ask(m.Put((m.PutItem(3, m.Pointer("bob", 3)), m.PutItem(4, m.Pointer("alice", 9)))))
    ask(m.Put((m.PutItem(5, m.Slot(0)), m.PutItem(6, m.Slot(1), requires_grad=True))), _pair())
    ask(m.Apply("aten.mul", (m.Handle(1), m.Handle(2)), {}, (10,)))
    ask(m.Backward(10, m.Slot(0), True), [torch.ones(3)])
    ask(m.Grad(2, 11))
    ask(m.Step("opt.sgd", {}, 0.1, (2,), ((), ())))
    ask(m.Steps((m.Step("opt.sgd", {}, 0.1, (2,), ((), ())),)))
    ask(m.ZeroGrad((2,)))
    ask(m.RequireGrad((1,), True))
    ask(m.Copy((1, public, *private), (12, 13, 14, 15)))
    ask(m.Transfer((5,), "peer", (5,), True))
    ask(m.Apply("aten.sum", (m.Handle(private[0]),), {"dim": m.Numbers((0,))}, (16,)))
    ask(m.Apply("aten.expand", (m.Handle(1),), {"size": m.Numbers((1000, 3))}, (17,)))


def _pair() -> list[torch.Tensor]:
    return [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 0.25, 0.125])]


def _plans(
    connection: Connection, graphs: Sequence[Graph], plans: Sequence[bytes], private: Sequence[int]
) -> None:
    constant = torch.arange(3.0)
    names = [hashlib.sha256(data).hexdigest() for data in plans]
    for graph, name, data in zip(graphs, names, plans, strict=True):
        needs = bool(graph.constants)
        slots = {digest(constant): m.Slot(0)} if needs else {}
        install = m.Install(name, data, slots, ("#plan",), "a plan")
        connection.call(install, [constant] if needs else [])
    x, y = _pair()
    ask = connection.call
    ask(m.Run(names[0], (m.Slot(0), m.Slot(1)), (m.Return(), m.Keep(20))), [x, y])
    ask(m.Run(names[2], (m.Handle(5), m.Handle(6), m.Slot(0)), (m.Drop(),)), [x])
    ask(m.Run(names[1], (m.Handle(6),), (m.Keep(21),), grad=True))
    ask(m.Run(names[5], (m.Handle(private[0]), m.Slot(0)), (m.Return(),)), [torch.ones(2, 3)])
    inputs = (m.Slot(0), m.Slot(1), m.Slot(2), m.Slot(3))
    given = [torch.ones(5, 3), torch.ones(5), torch.tensor(0.1), torch.zeros(3)]
    ask(m.Run(names[6], inputs, (m.Return(),), (m.Return(),)), given)
    ask(m.Steps((m.Run(names[1], (m.Slot(0),), (m.Keep(22),)),)), [x])
    _cohorts(connection, names, private)
    ask(m.FetchPlan(names[4]))
    ask(m.Plans(("#plan",)))


def _cohorts(connection: Connection, names: Sequence[str], private: Sequence[int]) -> None:
    x, y = _pair()
    ask = connection.call
    ask(m.Put((m.PutItem(7, m.Slot(0)),)), [torch.tensor([2, 0, 1, 0])])
    ask(
        m.Cohort(
            names[2],
            (m.Slot(0), m.Slot(1), c.Own()),
            (c.Sum(30, True), c.Mean(), c.Sum(20)),
            (c.CohortMember(1.0, (m.Handle(5),)), c.CohortMember(2.5, (c.RowsOf(1, 0, 3),))),
            2.0**40,
            0.25,
        ),
        [x, y],
    )
    ask(
        m.Cohort(
            names[2],
            (c.Begun(m.Slot(0)), c.Filled(0.5), c.Own()),
            (c.Each(), c.Dropped(), c.KeptOwn()),
            (
                c.CohortMember(1.0, (c.PickedFrom(1, 7, 1, 4),), (), (30,)),
                c.CohortMember(1.0, (m.Handle(5),), (6, 0), (31,)),
            ),
        ),
        [x],
    )
    member = c.CohortMember(1.0, ())
    inputs = (m.Slot(0), c.KeyOf(1))
    given = [torch.ones(2, 8), torch.arange(2)]
    ask(m.Cohort(names[7], inputs, (c.Mean(), c.Dropped()), (member, member)), given)
    own = c.CohortMember(1.0, (m.Handle(private[0]),))
    ask(m.Cohort(names[5], (c.Own(), m.Slot(0)), (c.Mean(),), (own,)), [torch.ones(2, 3)])


def _owners(connection: Connection, approved: str) -> None:
    for body in (
        m.Status(),
        m.OwnerObjects(),
        m.OwnerPlans(),
        m.Pending(),
        m.Approve(approved, ("eve",), {"x": ("#secret",)}, 3, 1e12),
        m.Deny(approved, "no"),
    ):
        try:
            connection.call(body)
        except planc.PlancError:  # a client may not: the frame is what is wanted
            continue
        raise AssertionError(f"a client was allowed to {body}")


def _tidying(bob: WorkerHandle, connection: Connection) -> None:
    connection.call(m.Free((12,)))
    connection.call(m.Uninstall(("0" * 64,)))
    connection.call(m.List())
    bob.clear_objects()


def _kind(frame: bytes) -> str:
    message, _ = decode(frame)
    assert isinstance(message, m.Request)
    return type(message.body).__name__


def _ids(frames: Sequence[bytes]) -> set[int]:
    """The ids of objects that frames put."""
    out = set[int]()
    for frame in frames:
        message, _ = decode(frame)
        assert isinstance(message, m.Request)
        match message.body:
            case m.Put(items):
                out.update(item.id for item in items)
            case m.Apply(results=results):
                out.update(id for id in results if id is not None)
            case _:
                pass
    return out
