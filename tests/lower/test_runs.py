"""Many runs of one executable: results stay, threads do not meet, deadlines end runs, profiles add up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch
from torch import nn

import planc
from planc.errors import ExecutionError, InputError, LimitError
from planc.ir import DimVar, DType, Graph, sym
from planc.ir.program import Program
from planc.lower import Executable, ExecutableCache, bind_tensors, optimizers, profile
from planc.lower.calls import Call
from planc.lower.emit import _allocate
from runtime.errors import RemoteLimitError
from runtime.executor import Executor, Interpreting, RunBounds, Runner
from runtime.interpreter import interpret
from tests.sketch import Sketch, f32

CPU = torch.device("cpu")


def bits(tensors: list[torch.Tensor]) -> list[bytes]:
    return [
        t.contiguous().view(torch.uint8).numpy().tobytes() if t.dim() else repr(t).encode() for t in tensors
    ]


def training(optimizer: Callable[..., torch.optim.Optimizer]) -> planc.Plan:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    given = torch.randn(8, 6), torch.randint(3, (8,))
    return planc.train_step(net, nn.functional.cross_entropy, optimizer(net.parameters(), lr=0.1), *given)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "momentum": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, weight_decay=0.1),
    "adam": torch.optim.Adam,
    "rmsprop": torch.optim.RMSprop,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_output_and_state_that_was_ever_returned_stays_as_it_was(name: str) -> None:
    plan = training(OPTIMIZERS[name])
    epoch = planc.epoch(plan, batch_size=4, shuffle=True)
    for step, rows in ((plan, 8), (epoch, 22)):
        held: list[tuple[torch.Tensor, bytes]] = []
        for run in range(6):
            x, y = torch.randn(rows, 6), torch.randint(3, (rows,))
            before = dict(step.state)
            result = step(x, y)
            kept = [x, y, *before.values(), *step.state.values(), result]
            held += [(t, bits([t])[0]) for t in kept]
            assert not any(t.is_inference() or t.requires_grad for t in kept), run
        assert all(bits([t])[0] == was for t, was in held)


def test_what_a_caller_does_with_results_changes_no_later_run() -> None:
    plan = training(torch.optim.SGD)
    x, y = torch.randn(8, 6), torch.randint(3, (8,))
    given = iter((x, y))
    values = [plan.state[p.path] if p.role.is_state else next(given) for p in plan.inputs]
    run = Executable(plan.program, bind_tensors(plan.graph, values), CPU)
    want = [t.clone() for t in interpret(plan.graph, values, plan.constants)]
    for _ in range(4):
        got = run(values)
        assert bits(got) == bits(want)
        for t in got:
            t.zero_()


def test_state_that_is_carried_through_an_epoch_is_updated_in_place_and_equals_the_interpreter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_place: list[bool] = []

    def watched(call: Call, over: bool) -> optimizers.Update:
        in_place.append(over)
        return optimizers.update_of(call, over)

    monkeypatch.setattr("planc.lower.emit.update_of", watched)
    for optimizer in OPTIMIZERS.values():
        epoch = planc.epoch(training(optimizer), batch_size=4, shuffle=False)
        x, y = torch.randn(22, 6), torch.randint(3, (22,))
        given = iter((x, y))
        values = [epoch.state[p.path] if p.role.is_state else next(given) for p in epoch.inputs]
        before = bits(values)
        want = interpret(epoch.graph, values, epoch.constants)
        run = Executable(epoch.program, bind_tensors(epoch.graph, values), CPU)
        for _ in range(2):
            assert bits(run(values)) == bits(want)
            assert bits(values) == before
    assert in_place == [True] * 6  # of all but rmsprop, in a batch of four and in the last


def test_a_scan_whose_layouts_change_from_trip_to_trip() -> None:
    body = Sketch("body")
    a, b = body.input("a", f32(3, 3)), body.input("b", f32(3, 3))
    turned = body.op("aten.t", body.op("aten.exp", b))
    inner = body.give(turned, a, body.op("aten.mm", a, b))
    s = Sketch("outer")
    x, y = s.input("x", f32(3, 3)), s.input("y", f32(3, 3))
    graph = s.give(*s.many("scan", (x, y), (), (), body=s.subplan(inner), trips=7))
    values = [torch.rand(3, 3).t() * 0.1, torch.rand(6, 3)[::2] * 0.1]
    want = interpret(graph, values)
    run = Executable(Program(graph), bind_tensors(graph, values), CPU)
    for _ in range(3):
        assert bits(run(values)) == bits(want)


def test_results_that_stand_in_for_a_long_scans_do_no_harm_while_layouts_are_found() -> None:
    body = Sketch("body")
    inner = body.give(body.op("aten.add", body.input("x", f32(2)), 1.0))
    s = Sketch("outer")
    start, rows = s.input("x", f32(2)), s.input("table", f32(2, 3))
    (x,) = s.many("scan", (start,), (), (), body=s.subplan(inner), trips=9)
    wanted = s.op("aten.to", s.op("aten.sub", x, 9.0), dtype=DType.I64)
    graph = s.give(s.op("aten.index_select", rows, wanted, dim=0))
    table = torch.randn(2, 3)
    run = Executable(Program(graph), bind_tensors(graph, [torch.tensor([0.0, 1.0]), table]), CPU)
    for _ in range(2):  # after two trips the rows are -7 and -6, which the table does not have
        assert torch.equal(run([torch.tensor([0.0, 1.0]), table])[0], table)


# -- threads -----------------------------------


def test_one_executable_in_many_threads() -> None:
    plan = training(torch.optim.Adam)
    y = torch.randint(3, (8,))
    state = [plan.state[p.path] for p in plan.inputs if p.role.is_state]
    arguments = sum(not p.role.is_state for p in plan.inputs)
    assert [p.role.is_state for p in plan.inputs][:arguments] == [False] * arguments
    inputs = [[torch.full((8, 6), float(i)) + torch.randn(8, 6), y, *state] for i in range(8)]
    want = [bits(interpret(plan.graph, values, plan.constants)) for values in inputs]
    run = Executable(plan.program, bind_tensors(plan.graph, inputs[0]), CPU)
    barrier = threading.Barrier(8)

    def work(number: int) -> bool:
        barrier.wait()
        return all(bits(run(inputs[number])) == want[number] for _ in range(25))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


# -- deadlines -----------------------------------


def long_chain() -> Graph:
    s = Sketch("chain")
    value = s.input("x", f32(2))
    for _ in range(400):
        value = s.op("aten.neg", value)
    return s.give(value)


def long_scan() -> Graph:
    body = Sketch("body")
    inner = body.give(body.op("aten.neg", body.input("x", f32(2))))
    s = Sketch("outer")
    (x,) = s.many("scan", (s.input("x", f32(2)),), (), (), body=s.subplan(inner), trips=10**8)
    return s.give(x)


@pytest.mark.parametrize("runs_before", [0, 2])
def test_a_run_that_takes_too_long_ends(runs_before: int) -> None:
    graph = long_chain()
    run = Executable(Program(graph), {}, CPU)
    for _ in range(runs_before):
        run([torch.ones(2)])
    with pytest.raises(LimitError, match="took longer than it may"):
        run([torch.ones(2)], 0.0)
    assert run([torch.ones(2)], 60.0)[0].tolist() == [1.0, 1.0]
    assert run([torch.ones(2)])[0].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("runner", [None, Interpreting()], ids=["compiled", "interpreter"])
def test_an_executor_ends_a_scan_of_years(runner: Runner | None) -> None:
    bounds = RunBounds(nodes=10**12, flops=10**20, seconds=0.1)
    executor = Executor(CPU, bounds, 2**20, runner)
    start = time.perf_counter()
    program = Program(long_scan())
    prepared = executor.prepare("years", program, [torch.ones(2)])
    with pytest.raises(RemoteLimitError, match=r"plan 'outer' took longer than the 0\.1 seconds"):
        executor.run(prepared, program, [torch.ones(2)])
    with pytest.raises(RemoteLimitError, match=r"took longer than the 0\.01 seconds"):
        executor.run(prepared, program, [torch.ones(2)], seconds=0.01)
    with pytest.raises(RemoteLimitError, match=r"took longer than the 0\.1 seconds"):
        executor.run_with_grad("years", Program(long_scan()), [torch.ones(2)], seconds=5.0)
    assert time.perf_counter() - start < 30


# -- memory -----------------------------------


def test_buffers_count_in_the_cache_and_go_with_it() -> None:
    s = Sketch("wide", [DimVar("b")])
    x = s.input("x", f32(sym("b"), 1000))
    program = Program(s.give(s.op("aten.sum", s.op("aten.exp", x))))
    cache = ExecutableCache(max_bytes=100_000)
    sizes: list[int] = []
    for rows in (1, 10, 20):
        for _ in range(2):
            cache.run("wide", program, [torch.ones(rows, 1000)])
        sizes.append(cache.nbytes)
    assert all(after - before > 30_000 for before, after in pairwise(sizes[:2]))
    assert sizes[2] < 100_000  # the one of ten rows, and perhaps the other, had to go
    assert len(cache) < 3


def test_what_is_large_is_not_kept() -> None:
    s = Sketch("large")
    x = s.input("x", f32(2**20))
    graph = s.give(s.op("aten.sum", s.op("aten.exp", x)))
    run = Executable(Program(graph), {}, CPU)
    for _ in range(2):
        run([torch.zeros(2**20)])
    assert run.nbytes < 100_000


# -- profiles -----------------------------------


def test_a_profile_has_a_row_for_each_node_that_runs() -> None:
    plan = training(torch.optim.SGD)
    before = bits(list(plan.state.values()))
    rows = plan.profile(torch.randn(8, 6), torch.randint(3, (8,)))
    assert bits(list(plan.state.values())) == before
    assert [r.seconds for r in rows] == sorted((r.seconds for r in rows), reverse=True)
    assert all(r.seconds > 0 and r.runs == 1 and plan.nodes[r.node].op == r.op for r in rows)
    assert {r.op for r in rows} >= {"opt.sgd", "aten.nll_loss_forward"}
    assert len({r.node for r in rows}) == len(rows) <= len(plan.nodes)


def test_a_profile_counts_the_trips_of_a_scan() -> None:
    epoch = planc.epoch(training(torch.optim.SGD), batch_size=4, shuffle=False)
    rows = epoch.profile(torch.randn(22, 6), torch.randint(3, (22,)))
    assert {r.runs for r in rows if r.op == "opt.sgd"} == {6}
    assert {r.plan for r in rows} == {epoch.name, epoch.graph.subplans[0].name}


def test_a_profile_says_what_failed() -> None:
    s = Sketch("pick")
    x, rows = s.input("x", f32(2)), s.const(torch.tensor([5]))
    program = Program(s.give(s.op("aten.index_select", x, rows, dim=0)), s.data)
    with pytest.raises(ExecutionError, match="index_select failed"):
        profile(program, [torch.ones(2)])
    with pytest.raises(InputError, match="takes 1 inputs"):
        profile(program, [])


def test_planned_memory_is_of_whole_elements() -> None:
    """`aten.slice_scatter` clones the storage that its operand lies in, and wants whole elements there."""
    storage = _allocate(25, CPU)
    whole = torch.empty(0).set_(storage.untyped_storage(), 0, (2, 3), (3, 1)).zero_()
    made = torch.ops.aten.slice_scatter.default(whole, torch.ones(1, 3), 0, 0, 1, 1)
    assert made.tolist() == [[1.0] * 3, [0.0] * 3]
