"""A cohort: one message runs a plan for many clients, and gives what a plain loop over them gives."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch

import planc
from planc.errors import DecodeError, InputError, LimitError
from planc.ir import DType, TensorType
from runtime import RemoteTensor, VirtualWorker, WorkerHandle, count_messages
from runtime.access.approvals import Approval
from runtime.cohorts import Cohort, CohortDone, CohortMember, KeptOwn, Own, PickedFrom, RowsOf, Sum, Unfit
from runtime.errors import (
    ApprovalNeeded,
    ObjectExists,
    ObjectNotFound,
    PermissionDenied,
    QuotaExceeded,
    StoreFull,
    WrongWorker,
)
from runtime.executor import Interpreting
from runtime.federated.cohort import run_cohort
from runtime.federated.members import CohortResult, Member, Picked, Rows, Source
from runtime.handlers import membership
from runtime.limits import WorkerLimits
from runtime.messages import Handle, Request, Slot
from runtime.policy import NOTHING, Needs, Policy, Quota, Rights
from runtime.reservations import Reservations
from runtime.sums import Grid, add_sums
from runtime.wire import decode, encode
from tests.network.fixtures import channel, over_every_channel  # noqa: F401

LR = torch.tensor(0.1)
FIT = planc.parse(
    """plan fit(x: f32[n, 3], y: f32[n], lr: f32[], param w: f32[3], buffer seen: i64[], optim m: f32[3])
      -> (loss: f32[], errors: f32[n], param w, buffer seen, optim m) {
      e = x @ w - y
      moved = 0.5 * m + (t(x) @ e) / n
      return mean(e * e), e, w - lr * moved, seen + n, moved
    }"""
).with_state({"m": torch.zeros(3)})
NOISY = planc.parse(
    """plan noisy(x: f32[n, 3], param w: f32[3], key rng: i64[]) -> (param w, key rng) {
      here, next = random.split(rng, count=2)
      return w + 0.1 * random.randn(here, size=[3], dtype=f32) + sum(x, dim=0), next
    }"""
)
LOOKUP = planc.parse(
    """plan lookup(x: f32[2], at: i64[2], param w: f32[2]) -> (picked: f32[2], param w) {
      return aten.index_select(x, at, dim=0), w + x
    }"""
)
TOTAL = planc.parse("plan total(x: f32[n, 3], param w: f32[3]) -> (param w) { return w + sum(x, dim=0) }")
MODEL = {"w": torch.tensor([0.5, -1.0, 2.0]), "seen": torch.tensor(3)}
State = Mapping[str, torch.Tensor]


def data(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 3, generator=made), torch.randn(rows, generator=made)


def plain(x: torch.Tensor, y: torch.Tensor, model: State = MODEL, m: torch.Tensor | None = None) -> Any:
    """What `FIT` computes, in torch: loss, model, momentum."""
    e = x @ model["w"] - y
    moved = 0.5 * (torch.zeros(3) if m is None else m) + x.t() @ e / len(x)
    return (e * e).mean(), {"w": model["w"] - LR * moved, "seen": model["seen"] + len(x)}, moved


def split(worker: WorkerHandle, sizes: Sequence[int], seed: int = 0) -> list[Member]:
    """Members whose rows lie one after another in two tensors."""
    x, y = worker.send_all(list(data(sum(sizes), seed)))
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [
        Member(client, float(n), (Rows(x, start, start + n), Rows(y, start, start + n)))
        for client, (start, n) in enumerate(zip(starts, sizes, strict=True))
    ]


def grid_for(members: Sequence[Member], model: State = MODEL) -> Grid:
    return Grid.of(model, math.fsum(m.weight for m in members))


def fit(worker: WorkerHandle, members: Sequence[Member], **options: Any) -> CohortResult:
    grid = options.pop("grid") if "grid" in options else grid_for(members)
    options = {"model": MODEL, "arguments": {"lr": LR}, **options}
    return run_cohort(worker, FIT, members=members, grid=grid, **options)


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# What comes of it


def test_it_gives_what_a_loop_over_the_clients_gives() -> None:
    bob, sizes = VirtualWorker("bob"), [4, 7, 1, 12]
    members = split(bob, sizes)
    result = fit(bob, members, each=True)
    x, y = data(sum(sizes))
    each = [plain(a, b) for a, b in zip(x.split(sizes), y.split(sizes), strict=True)]
    total = sum(sizes)
    mean = grid_for(members).mean(result.sums, result.weight, MODEL)
    want = sum(n * model["w"] for n, (_, model, _) in zip(sizes, each, strict=True)) / total
    torch.testing.assert_close(mean["w"], want, rtol=1e-6, atol=1e-6)
    assert mean["seen"].item() == round(sum(n * (3 + n) for n in sizes) / total)
    assert (result.done, result.failed, result.late) == ((0, 1, 2, 3), {}, ())
    assert result.weight == total
    assert result.sums["w"].dtype is torch.int64
    torch.testing.assert_close(
        result.metrics["loss"], torch.stack([loss for loss, _, _ in each]).double(), rtol=1e-6, atol=1e-6
    )
    assert result.metrics["errors"].shape == (4,)
    for client, (_, model, _) in enumerate(each):
        torch.testing.assert_close(result.each[client], model, rtol=1e-6, atol=1e-6)
    assert result.state == {}
    assert (result.seconds > 0).all()
    assert result.seconds.shape == (4,)


def test_one_message_a_cohort_and_the_plan_once() -> None:
    bob = VirtualWorker("bob")
    members = split(bob, [3] * 20)
    with count_messages() as sent:
        fit(bob, members)
    assert sent.by_kind == {"Install": 1, "Cohort": 1}
    with count_messages() as sent:
        fit(bob, members)
    assert sent.by_kind == {"Cohort": 1}
    # The model there (w, seen, lr) and sums, metrics and seconds back; neither data nor momentum travels.
    assert sent.bytes_out < 2000
    assert sent.bytes_in < 1400


@pytest.mark.parametrize("seed", range(3))
def test_the_sums_are_the_same_bits_however_the_members_are_spread(seed: int) -> None:
    sizes, deal = [4, 7, 1, 12, 5, 5, 9, 2], random.Random(seed)
    workers = [VirtualWorker(name) for name in "abc"]
    whole = split(workers[0], sizes)
    grid = grid_for(whole)
    want = fit(workers[0], whole, grid=grid).sums
    copies = [split(worker, sizes) for worker in workers]
    for _ in range(3):
        order = list(range(len(sizes)))
        deal.shuffle(order)
        cuts = sorted(deal.sample(range(1, len(sizes)), 2))
        parts = [order[: cuts[0]], order[cuts[0] : cuts[1]], order[cuts[1] :]]
        sums: dict[str, torch.Tensor] = {}
        for worker, members, part in zip(workers, copies, parts, strict=True):
            sums = add_sums(sums, fit(worker, [members[i] for i in part], grid=grid).sums)
        assert same(sums, want)


def test_every_way_to_say_where_data_is_means_the_same() -> None:
    bob = VirtualWorker("bob")
    x, y = data(6)
    order = torch.tensor([5, 3, 1, 0, 2, 4])
    back = order.argsort()
    rx, ry, sx, sy, ri = bob.send_all([x, y, x[order], y[order], back])
    ways: list[tuple[Source, ...]] = [
        (rx, ry),
        (Rows(rx, 0, 6), Rows(ry, 0, 6)),
        (Picked(sx, ri, 0, 6), Picked(sy, ri, 0, 6)),
        (Rows(rx, 0, 6), Picked(sy, ri, 0, 6)),
    ]
    results = [fit(bob, [Member(0, 6.0, way)]).sums for way in ways]
    assert all(same(result, results[0]) for result in results)
    part = fit(bob, [Member(0, 2.0, (Picked(sx, ri, 2, 4), Picked(sy, ri, 2, 4)))]).sums
    assert same(part, fit(bob, [Member(0, 2.0, (Rows(rx, 2, 4), Rows(ry, 2, 4)))]).sums)


def test_each_member_draws_from_its_own_key() -> None:
    bob = VirtualWorker("bob")
    x = bob.send(torch.zeros(2, 3))
    model = {"w": torch.zeros(3)}
    members = [Member(i, 1.0, (x,), planc.key(i % 2)) for i in range(4)]
    each = run_cohort(bob, NOISY, model, members, None, each=True).each
    assert same(each[0], each[2])
    assert not same(each[0], each[1])
    alone = run_cohort(bob, NOISY, model, members[1:2], None, each=True).each
    assert same(each[1], alone[1])
    with pytest.raises(InputError, match="expected a key for each member"):
        run_cohort(bob, NOISY, model, [Member(0, 1.0, (x,))], None)


def test_an_evaluation_adds_nothing_up() -> None:
    bob = VirtualWorker("bob")
    result = fit(bob, split(bob, [4, 4]), grid=None)
    assert (result.sums, result.each, result.weight) == ({}, {}, 8.0)
    assert result.metrics["loss"].shape == (2,)


# State of the members' own


def test_state_that_is_kept_goes_on_from_round_to_round() -> None:
    bob, sizes = VirtualWorker("bob"), [4, 7]
    members = split(bob, sizes)
    x, y = (t.split(sizes) for t in data(11))
    own: list[Any] = [None, None]
    states: Mapping[int, Any] = {}
    for number in range(3):
        now = [
            Member(
                m.client, m.weight, m.data, None, states.get(m.client, {}), keep=m.client == 0 or number > 0
            )
            for m in members
        ]
        result = fit(bob, now, each=True)
        for i in range(2):
            _, model, moved = plain(x[i], y[i], m=own[i])
            torch.testing.assert_close(result.each[i], model, rtol=1e-6, atol=1e-6)
            own[i] = moved if now[i].keep else None
        states = result.state
        assert states.keys() == {m.client for m in now if m.keep}
        assert states[0].keys() == {"m"}
    torch.testing.assert_close(states[1]["m"].copy_here(), own[1], rtol=1e-6, atol=1e-6)
    held = len(bob.worker)
    del states, result, now
    bob.objects  # noqa: B018 -- the next message takes what is let go of along
    bob.objects  # noqa: B018
    assert len(bob.worker) < held


def test_a_beginning_that_is_not_all_one_number_travels() -> None:
    bob = VirtualWorker("bob")
    members = split(bob, [4])
    begun = torch.tensor([1.0, -2.0, 0.5])
    for m in (begun, torch.full((3,), 0.25), torch.tensor([0.0, -0.0, 0.0])):
        plan = FIT.with_state({"m": m})
        each = run_cohort(bob, plan, MODEL, members, None, arguments={"lr": LR}, each=True).each
        torch.testing.assert_close(each[0], plain(*data(4), m=m)[1], rtol=1e-6, atol=1e-6)


def test_what_is_kept_is_kept_of_those_who_are_done_only() -> None:
    bob = VirtualWorker("bob")
    x, y = bob.send_all([torch.stack([torch.ones(3), torch.full((3,), float("nan"))]), torch.zeros(2)])
    members = [Member(i, 1.0, (Rows(x, i, i + 1), Rows(y, i, i + 1)), keep=True) for i in range(2)]
    before = len(bob.worker)
    result = fit(bob, members)
    assert result.state.keys() == {0}
    assert len(bob.worker) == before + 1


# Who does not count


def test_a_member_that_fails_stops_nobody_and_says_no_elements() -> None:
    bob = VirtualWorker("bob")
    x = bob.send(torch.tensor([31337.0, 1.0]))
    good, bad, short = bob.send_all([torch.tensor([0, 1]), torch.tensor([0, 31337]), torch.tensor([0])])
    members = [Member(i, 1.0, (x, at)) for i, at in enumerate((good, bad, short, good))]
    result = run_cohort(
        bob, LOOKUP, {"w": torch.zeros(2)}, members, Grid.of({"w": torch.tensor([31337.0])}, 4.0)
    )
    assert result.done == (0, 3)
    assert result.weight == 2.0
    assert result.failed[1].startswith("execution: plan 'lookup': node 0 (aten.index_select)")
    assert result.failed[2].startswith("input: ")
    assert "31337" not in str(result.failed)
    picked = Member(0, 1.0, (Picked(x, bad, 0, 2), good))
    outside = run_cohort(bob, LOOKUP, {"w": torch.zeros(2)}, [picked], None)
    assert outside.failed[0].startswith("execution: the index names a row that is not there: the data has 2")
    assert "31337" not in str(outside.failed)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e6])
def test_nonsense_is_not_added_up(bad: float) -> None:
    bob = VirtualWorker("bob")
    x = torch.ones(3, 3)
    x[1] = bad
    rx = bob.send(x)
    members = [Member(7 + i, 1.0, (Rows(rx, i, i + 1),)) for i in range(3)]
    model = {"w": torch.zeros(3)}
    grid = Grid.of(model, 3.0)
    result = run_cohort(bob, TOTAL, model, members, grid, each=True)
    assert result.done == (7, 9)
    assert result.failed == {
        8: "nonsense: plan 'total': a result has elements that are NaN, infinite, or too large to be a "
        "result of training"
    }
    assert grid.mean(result.sums, result.weight, model)["w"].tolist() == [1.0] * 3
    assert result.each.keys() == {7, 9}
    only = run_cohort(bob, TOTAL, model, members[1:2], grid)
    assert (only.done, only.sums, only.weight) == ((), {}, 0.0)
    unbounded = run_cohort(bob, TOTAL, model, members, None, each=True)
    assert (8 in unbounded.failed) == (not math.isfinite(bad))


class Slow(Interpreting):
    """Runs that take a while."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.runs = seconds, 0

    def run(self, *args: Any, **options: Any) -> list[torch.Tensor]:
        self.runs += 1
        time.sleep(self.seconds)
        return super().run(*args, **options)


def slow(worker: VirtualWorker, seconds: float) -> Slow:
    runner = Slow(seconds)
    worker.worker._site.executor._runner = runner
    return runner


def test_when_the_time_is_over_the_rest_is_late() -> None:
    bob = VirtualWorker("bob")
    members = split(bob, [2] * 8)
    runner = slow(bob, 0.1)
    result = fit(bob, members, seconds=0.35)
    assert 1 <= len(result.done) <= 4
    assert result.failed == {}
    assert result.done + result.late == tuple(range(8))
    assert runner.runs < 8
    assert result.weight == 2.0 * len(result.done)
    none = fit(bob, members, seconds=0.0)
    assert (none.done, none.late, none.sums) == ((), tuple(range(8)), {})


def test_a_run_that_is_given_up_is_late_and_not_failed() -> None:
    bob = VirtualWorker("bob")
    members = split(bob, [2])
    forever = planc.parse(
        """plan forever(x: f32[n, 3], y: f32[n], param w: f32[3]) -> (param w) {
          for i in range(1000000) { w = w * 0.5 + sum(x, dim=0) }
          return w
        }"""
    )
    result = run_cohort(bob, forever, {"w": torch.zeros(3)}, members, None, seconds=0.3)
    assert (result.done, result.failed, result.late) == ((), {}, (0,))


# Rights


def patients(worker: VirtualWorker, count: int = 3) -> list[Member]:
    """Private originals of the worker's owner, an object a client."""
    for i in range(count):
        worker.worker.add(torch.full((2, 3), float(i)), tags=(f"#patient{i}",), private=True)
    return [Member(i, 1.0, (worker.search(f"#patient{i}")[0],)) for i in range(count)]


def total(worker: WorkerHandle, members: Sequence[Member], **options: Any) -> CohortResult:
    model = {"w": torch.zeros(3)}
    return run_cohort(worker, TOTAL, model, members, Grid.of(model, 100.0), **options)


def test_private_data_needs_an_approval_and_nothing_is_computed_without() -> None:
    bob = VirtualWorker("bob")
    members = patients(bob)
    runner = slow(bob, 0.0)
    with pytest.raises(ApprovalNeeded, match="needs the approval of the owner"):
        total(bob, members)
    assert runner.runs == 0
    assert bob.worker._site.approvals.of(TOTAL.id).pending["me"].count == 1
    bob.worker.approve(TOTAL.id)
    assert total(bob, members).done == (0, 1, 2)


def test_an_approval_is_spent_one_run_a_member_all_or_none() -> None:
    bob = VirtualWorker("bob")
    members = patients(bob)
    approvals = bob.worker._site.approvals

    def left() -> int | None:
        return approvals.of(TOTAL.id).approved[0].runs

    bob.install(TOTAL)
    approvals.approve(TOTAL.id, Approval(runs=5))
    public = Member(9, 1.0, (bob.send(torch.ones(2, 3)),))
    assert total(bob, [*members, public]).done == (0, 1, 2, 9)
    assert left() == 2
    with pytest.raises(PermissionDenied, match="approved for 2 runs more, 3 members take one each"):
        total(bob, members)
    assert left() == 2
    misfit = bob.worker.add(torch.ones(2, 4), tags=("#misfit",), private=True)
    wrong = Member(5, 1.0, (bob.search("#misfit")[0],))
    assert misfit
    result = total(bob, [wrong, members[0]])
    assert result.failed.keys() == {5}
    assert left() == 1


def test_rows_of_private_data_release_nothing() -> None:
    bob = VirtualWorker("bob")
    whole = patients(bob, 1)[0].data[0]
    index = bob.send(torch.tensor([0, 1]))
    bob.worker.approve(TOTAL.id)
    runner = slow(bob, 0.0)
    assert not isinstance(whole, Rows | Picked)
    for source in (Rows(whole, 0, 2), Rows(whole, 0, 1), Picked(whole, index, 0, 2)):
        with pytest.raises(PermissionDenied, match=r"is private, and rows taken out of it are no original"):
            total(bob, [Member(0, 1.0, (source,))])
    bob.worker.add(torch.tensor([0, 1]), tags=("#index",), private=True)
    secret = bob.search("#index")[0]
    with pytest.raises(PermissionDenied, match="no original"):
        total(bob, [Member(0, 1.0, (Picked(bob.send(torch.ones(2, 3)), secret, 0, 2),))])
    assert runner.runs == 0


def test_who_may_have_private_data_may_have_sums_of_its_rows() -> None:
    bob = VirtualWorker("bob")
    bob.worker.add(torch.ones(4, 3), tags=("#a",), private=True, allowed=("me",))
    found = bob.search("#a")[0]
    members = [Member(i, 1.0, (Rows(found, i, i + 2),), keep=True) for i in range(2)]
    assert total(bob, members).done == (0, 1)


def test_data_of_others_does_not_exist() -> None:
    bob = VirtualWorker("bob")
    mine = bob.send(torch.ones(4, 3))
    eve = bob.as_client("eve")
    theirs = RemoteTensor(eve, mine.id, TensorType(DType.F32, (4, 3)), owned=False)
    for source in (theirs, Rows(theirs, 0, 2)):
        with pytest.raises(ObjectNotFound, match="there is no object"):
            total(eve, [Member(0, 1.0, (source,))])
    with pytest.raises(ObjectNotFound):
        fit(
            bob,
            [Member(0, 1.0, (mine, mine), state={"m": RemoteTensor(bob, 5, mine.tensor_type, owned=False)})],
        )


@pytest.mark.parametrize("rights", [Rights(fetch=NOTHING), Rights(run=NOTHING)])
def test_it_takes_the_right_to_run_and_to_have_results(rights: Rights) -> None:
    bob = VirtualWorker("bob", policy=Policy(clients={"ann": rights}))
    x = bob.send(torch.ones(4, 3))
    ann = bob.as_client("ann")
    mine = ann.send(torch.ones(4, 3)) if rights.run is not NOTHING else x
    with pytest.raises(PermissionDenied, match=r"may not (fetch elements|install and run plans)"):
        total(ann, [Member(0, 1.0, (RemoteTensor(ann, mine.id, mine.tensor_type, owned=False),))])


def test_who_always_needs_an_approval_needs_one_a_member() -> None:
    bob = VirtualWorker("bob", policy=Policy(clients={"ann": Rights(needs=Needs.ALWAYS)}))
    bob.worker.add(torch.ones(4, 3), tags=("#open",))
    ann = bob.as_client("ann")
    members = [Member(i, 1.0, (Rows(ann.search("#open")[0], i, i + 2),)) for i in range(2)]
    with pytest.raises(ApprovalNeeded):
        total(ann, members)
    bob.worker._site.approvals.approve(TOTAL.id, Approval(runs=2))
    assert total(ann, members).done == (0, 1)
    assert bob.worker._site.approvals.of(TOTAL.id).approved[0].runs == 0


def test_the_same_objects_are_cleared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bob = VirtualWorker("bob")
    cleared: list[object] = []
    real: Callable[..., Any] = membership.clear

    def counting(*args: Any, **options: Any) -> Any:
        cleared.append(args)
        return real(*args, **options)

    monkeypatch.setattr(membership, "clear", counting)
    fit(bob, split(bob, [2] * 50))
    own = [Member(i, 1.0, (bob.send(torch.ones(2, 3)),)) for i in range(5)]
    total(bob, own)
    assert len(cleared) == 2
    bob.worker.approve(TOTAL.id)
    total(bob, patients(bob))
    assert len(cleared) == 5


def test_a_quota_of_seconds_ends_a_cohort_between_its_members() -> None:
    bob = VirtualWorker("bob", policy=Policy(default=Rights(quota=Quota(seconds=0.25))))
    members = split(bob, [2] * 8)
    slow(bob, 0.1)
    result = fit(bob, members)
    assert 1 <= len(result.done) <= 3
    assert set(result.failed) == set(range(8)) - set(result.done)
    assert result.failed[7].startswith("quota-exceeded: 'me' has computed all of its 0.25 seconds here")
    with pytest.raises(QuotaExceeded):
        fit(bob, members)


# Bounds and malformed messages


def test_what_would_not_fit_is_refused_before_it_is_computed() -> None:
    small = VirtualWorker("small")
    small.worker._site.reply_bytes = 2500
    members = split(small, [1] * 60)
    runner = slow(small, 0.0)
    with pytest.raises(LimitError, match=r"the reply would have \d+ bytes of tensors, 2500 are allowed"):
        fit(small, members, each=True)
    assert runner.runs == 0
    fit(small, members[:5], each=True)
    full = VirtualWorker("full", limits=WorkerLimits(store_bytes=2000))
    members = split(full, [1] * 40)
    runner = slow(full, 0.0)
    with pytest.raises(StoreFull):
        fit(full, [Member(m.client, 1.0, m.data, keep=True) for m in members])
    assert runner.runs == 0


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (Cohort(TOTAL.id, (Own(),), (Sum(0),), ()), "takes 2 inputs, got 1"),
        (Cohort(TOTAL.id, (Own(), Slot(0)), (), ()), "has 1 outputs, got 0"),
        (
            Cohort(TOTAL.id, (Own(), Slot(0)), (Sum(0),), (CohortMember(1.0, ()),)),
            "expected 1 tensors of data",
        ),
        (
            Cohort(TOTAL.id, (Own(), Slot(0)), (Sum(0),), (CohortMember(1.0, (Handle(1),), (3,)),)),
            "no state or 0 ids, got 1 and 1",
        ),
        (
            Cohort(TOTAL.id, (Own(), Slot(0)), (Sum(0),), (CohortMember(1.0, (Handle(1),), (), (3,)),)),
            "expected no id to keep at or 0, got 1",
        ),
        (
            Cohort(TOTAL.id, (Own(), Slot(0)), (Sum(0),), (CohortMember(2.0**40, (Handle(1),)),), 2.0**40),
            r"could overflow: expected at most 2\*\*62",
        ),
    ],
    ids=["inputs", "outputs", "data", "state", "keep", "overflow"],
)
def test_a_cohort_that_does_not_fit_its_plan_is_refused(body: Cohort, said: str) -> None:
    bob = VirtualWorker("bob")
    bob.install(TOTAL)
    with pytest.raises(InputError, match=said):
        bob.connection.call(body, [torch.zeros(3)])


def test_shapes_that_differ_by_member_cannot_be_added_up_or_kept() -> None:
    bob = VirtualWorker("bob")
    x = bob.send(torch.ones(4))
    plan = planc.parse("plan twice(x: f32[n]) -> (y: f32[n]) { return x * 2 }")
    bob.install(plan)
    body = Cohort(plan.id, (Own(),), (Sum(0),), (CohortMember(1.0, (Handle(x.id),)),))
    with pytest.raises(InputError, match="its shape is not fixed"):
        bob.connection.call(body)


def test_rows_that_are_not_there_are_refused() -> None:
    bob = VirtualWorker("bob")
    x, y, at, odd = bob.send_all([*data(4), torch.tensor([0, 1]), torch.tensor([0.0])])
    for sources, said in (
        ((Rows(x, 2, 5), Rows(y, 2, 4)), "no rows 2 to 5 in object"),
        ((Rows(x, 3, 2), Rows(y, 2, 4)), "no rows 3 to 2"),
        ((Picked(x, at, 0, 3), Rows(y, 0, 3)), "no rows 0 to 3"),
        ((Picked(x, odd, 0, 1), Rows(y, 0, 1)), "expected i64 in one dim"),
    ):
        with pytest.raises(InputError, match=said):
            fit(bob, [Member(0, 1.0, sources)])


def test_what_the_caller_got_wrong_is_said_before_anything_is_sent() -> None:
    bob, alice = VirtualWorker("bob"), VirtualWorker("alice")
    members = split(bob, [2, 2])
    first = members[0]
    with count_messages() as sent:
        for wrong, said in (
            ([], "1 to 65536 members"),
            ([first, first], "must differ"),
            ([Member(0, 0.0, first.data)], "client 0: expected a weight above 0"),
            ([Member(0, math.nan, first.data)], "weight above 0"),
            (
                [Member(0, 1.0, first.data[:1])],
                r"client 0: plan 'fit' takes 2 tensors of data \(x, y\), got 1",
            ),
            ([Member(0, 1.0, first.data, state={"v": first.data[0].tensor})], "no own state 'v'"),
            ([Member(0, 1.0, (torch.ones(2), torch.ones(2)))], "expected a remote tensor, Rows or Picked"),
        ):
            with pytest.raises(InputError, match=said):
                fit(bob, wrong, grid=None)
        with pytest.raises(InputError, match="has no state 'v'; it has 'w', 'seen', 'm'"):
            fit(bob, members, model={"v": torch.ones(1)})
        with pytest.raises(InputError, match="has no argument 'rate'"):
            fit(bob, members, arguments={"rate": LR})
        with pytest.raises(InputError, match="the grid has no 'w'"):
            fit(bob, members, grid=Grid.of({"v": torch.ones(1)}, 4.0))
        with pytest.raises(InputError, match="no value for its state 'w'"):
            fit(bob, members, model={"seen": torch.tensor(3)})
        with pytest.raises(WrongWorker, match="client 0 is at 'bob', its cohort is at 'alice'"):
            fit(alice, members)
    assert sent.messages == 0


def test_an_answer_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bob = VirtualWorker("bob")
    members = split(bob, [2, 2])
    result = fit(bob, members)
    w, seen = result.sums["w"], result.sums["seen"]
    means, seconds = torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    slots = tuple(Slot(i) for i in range(4))

    whole = [torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)]

    def answer(done: CohortDone, tensors: list[torch.Tensor], **options: Any) -> None:
        monkeypatch.setattr(bob.connection, "call", lambda *_: (done, tensors))
        fit(bob, members, **options)

    good = CohortDone((0, 1), (), (), slots[:2], (), slots[2], slots[3])
    answer(good, [w, seen, means, seconds])
    for done, tensors in (
        (CohortDone((0, 0), (), (), slots[:2], (), slots[2], slots[3]), [w, seen, means, seconds]),
        (
            CohortDone((0,), (Unfit(1, "x", ""),), (1,), slots[:2], (), slots[2], slots[3]),
            [w, seen, means, seconds],
        ),
        (CohortDone((0, 1), (), (), slots[:1], (), slots[2], slots[3]), [w, seen, means, seconds]),
        (good, [w, seen, means]),
        (good, [w.double(), seen, means, seconds]),
        (good, [w[:2], seen, means, seconds]),
        (good, [w, seen, means[:1], seconds]),
        (good, [w, seen, means, seconds[:1]]),
    ):
        with pytest.raises(DecodeError):
            answer(done, tensors)
    each = {"grid": None, "each": True}
    answer(CohortDone((0, 1), (), (), (), slots[:2], slots[2], slots[3]), [*whole, means, seconds], **each)
    for rows in (
        [whole[0][:1], whole[1]],
        [whole[0][:, :2], whole[1]],
        [whole[0].double(), whole[1]],
        [whole[0].bool(), whole[1]],
        [whole[0], whole[0]],
    ):
        done = CohortDone((0, 1), (), (), (), slots[:2], slots[2], slots[3])
        with pytest.raises(DecodeError):
            answer(done, [*rows, means, seconds], **each)
    with pytest.raises(DecodeError, match="2 models, got 0, 1"):
        answer(
            CohortDone((0, 1), (), (), (), slots[:1], slots[2], slots[3]), [*whole, means, seconds], **each
        )


# The message itself


def test_a_repeated_request_is_applied_once() -> None:
    bob = VirtualWorker("bob")
    members = patients(bob)
    bob.install(TOTAL)
    bob.worker._site.approvals.approve(TOTAL.id, Approval(runs=3))
    body = Cohort(
        TOTAL.id,
        (Own(), Slot(0)),
        (Sum(20),),
        tuple(CohortMember(1.0, (Handle(m.data[0].id),)) for m in members),  # type: ignore[union-attr]
        2.0**40,
    )
    frame = bytes(encode(Request("me", 77, 1, 0, (), body), [torch.zeros(3)]))
    first = bytes(bob.worker.handle_frame(bytearray(frame)))
    assert isinstance(decode(bytearray(first))[0].body, CohortDone)  # type: ignore[union-attr]
    assert bytes(bob.worker.handle_frame(bytearray(frame))) == first
    assert bob.worker._site.approvals.of(TOTAL.id).approved[0].runs == 0


def test_the_worker_answers_others_while_it_computes() -> None:
    bob = VirtualWorker("bob")
    members = split(bob, [2] * 3)
    x = bob.send(torch.ones(2))
    seen: list[float] = []

    class Asking(Interpreting):
        def run(self, *args: Any, **options: Any) -> list[torch.Tensor]:
            seen.append(bob.as_client("me").search()[0].tensor_type.rank)
            return super().run(*args, **options)

    bob.worker._site.executor._runner = Asking()
    assert fit(bob, members).done == (0, 1, 2)
    assert len(seen) == 3
    assert x.copy_here().tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "names",
    [
        {"inputs": (Handle(5), Own())},
        {"data": (Handle(5),)},
        {"data": (RowsOf(5, 0, 1),)},
        {"data": (PickedFrom(5, 1, 0, 1),)},
        {"data": (PickedFrom(1, 5, 0, 1),)},
        {"state": (0, 5)},
        {"keep": (4, 5)},
    ],
    ids=str,
)
def test_a_cohort_waits_for_whoever_replaces_what_it_names(names: dict[str, Any]) -> None:
    fields = {"data": (Handle(1),), **names}
    inputs = fields.pop("inputs", (Own(),))
    member = CohortMember(1.0, **fields)
    request = Request("me", 1, 1, 0, (), Cohort("p", inputs, (), (CohortMember(1.0, (Handle(2),)), member)))
    assert Reservations({5}).hinder(request)
    assert not Reservations({6}).hinder(request)


def test_what_is_kept_takes_the_place_of_nothing_of_others() -> None:
    bob = VirtualWorker("bob")
    theirs = bob.as_client("eve").send(torch.ones(3))
    x = bob.send(torch.ones(2, 3))
    bob.install(TOTAL)

    def keeping(id: int) -> Cohort:
        return Cohort(
            TOTAL.id, (Own(), Slot(0)), (KeptOwn(),), (CohortMember(1.0, (Handle(x.id),), (), (id,)),)
        )

    with pytest.raises(ObjectExists):
        bob.connection.call(keeping(theirs.id), [torch.zeros(3)])
    answer, _ = bob.connection.call(keeping(x.id), [torch.zeros(3)])
    assert isinstance(answer, CohortDone)
    assert bob.fetch([x.id], delete=False)[0].tolist() == [2.0] * 3
    twice = keeping(x.id)
    with pytest.raises(InputError, match="given twice"):
        bob.connection.call(
            Cohort(TOTAL.id, twice.inputs, twice.outputs, twice.members * 2), [torch.zeros(3)]
        )


def test_means_of_several_results() -> None:
    bob = VirtualWorker("bob")
    plan = planc.parse(
        "plan two(x: i64[n]) -> (all: i64[n], some: bool[n], empty: f32[0]) "
        "{ return x, x > 1, full([0], 1.0, dtype=f32) }"
    )
    members = [Member(i, 1.0, (bob.send(torch.tensor([i, i + 1])),)) for i in range(3)]
    metrics = run_cohort(bob, plan, {}, members, None).metrics
    assert metrics["all"].tolist() == [0.5, 1.5, 2.5]
    assert metrics["some"].tolist() == [0.0, 0.5, 1.0]
    assert metrics["empty"].isnan().all()
