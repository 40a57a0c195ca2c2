"""Recorded runs: inputs copied in, results copied out; plain runs where nothing can be recorded, and why.

There is no CUDA graph here: a stand-in runs the recorded code again, on the same tensors.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import planc
from planc.errors import ExecutionError, InputError, LimitError
from planc.ir import DimExpr, DimVar, Graph, Role, sym
from planc.ir.dims import substitute
from planc.ir.program import Program
from planc.lower import ExecutableCache, bind_tensors
from planc.lower.calls import STRUCTURED
from planc.lower.graphs import RECORDERS, GraphExecutable
from planc.lower.replayable import MOST
from planc.ops.guards import vouched
from runtime import VirtualWorker
from runtime.interpreter import interpret
from tests.ops.cases import Case, Sample
from tests.ops.table import TABLE
from tests.sketch import F64, I64, Sketch, f32, tensor

CPU = torch.device("cpu")
B = sym("b")
KEPT = 5_000_000
"""Bytes that the stand-in says it keeps."""

Tensors = list[torch.Tensor]


class Again:
    """Stands for a graph: a replay runs the code again, and writes over the results of the capture."""

    made: ClassVar[list[weakref.ref[Again]]] = []

    def __init__(self, device: torch.device) -> None:
        assert device == CPU
        self.nbytes = KEPT
        self.replays = 0
        self.outputs: Tensors = []
        self.made.append(weakref.ref(self))

    def capture(self, run: Callable[[], Tensors]) -> Tensors:
        self._run = run
        with Unlooking():
            self.outputs = run()
        assert not any(t.requires_grad or t.is_inference() for t in self.outputs)
        return self.outputs

    def replay(self) -> None:
        self.replays += 1
        with vouched(), Unlooking():  # a real one checks nothing either
            for old, new in zip(self.outputs, self._run(), strict=True):
                old.copy_(new)


class Unlooking(TorchDispatchMode):
    """Refuses what CUDA refuses while it captures: to take data out of tensors."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in {"item", "_local_scalar_dense", "is_nonzero", "nonzero", "equal"}:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def _recorded_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU stands for a device that has graphs and whose kernels trust their data."""
    monkeypatch.setitem(RECORDERS, "cpu", Again)
    monkeypatch.setattr(Again, "made", [])
    for module in ("record", "emit", "replayable"):
        monkeypatch.setattr(f"planc.lower.{module}.unchecked", lambda _: True)


def recordings() -> list[Again]:
    return [found for ref in Again.made if (found := ref()) is not None]


def replays() -> int:
    return sum(each.replays for each in recordings())


def executable(graph: Graph, values: Tensors, data: dict[str, torch.Tensor] | None = None) -> GraphExecutable:
    return GraphExecutable(Program(graph, data or {}), bind_tensors(graph, values), CPU)


def exactly(got: Tensors, want: Tensors) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def layer() -> Graph:
    """Gives a sum of products, a view of it, an input, and the first again."""
    s = Sketch("layer", [DimVar("b")])
    x, w = s.input("x", f32(B, 3)), s.input("w", f32(4, 3))
    y = s.op("aten.relu", s.op("aten.mm", x, s.op("aten.t", w)))
    return s.give(y, s.op("aten.t", y), x, y)


def drawn(rows: int = 5) -> Tensors:
    return [torch.randn(rows, 3), torch.randn(4, 3)]


# -- what a replay gives -----------------------------------


def test_runs_are_replayed_from_the_third_on_and_equal_the_interpreters() -> None:
    graph, run = layer(), executable(layer(), drawn())
    assert run.refusal is None
    for number in range(6):
        values = drawn()
        exactly(run(values), interpret(graph, values))
        assert replays() == max(0, number - 1)
    assert len(recordings()) == 1


def test_what_was_given_and_got_is_nobodys_afterwards() -> None:
    run = executable(layer(), drawn())
    held: list[tuple[Tensors, Tensors]] = []
    for _ in range(5):
        values = drawn()
        before = [v.clone() for v in values]
        got = run(values)
        exactly(values, before)
        held.append((got, [t.clone() for t in got]))
        for value in values:  # the recording has read it
            value.fill_(torch.nan)
    for got, want in held:
        exactly(got, want)
    memory = [t.untyped_storage().data_ptr() for got, _ in held for t in got]
    assert len(set(memory)) == len(memory)
    held[-1][0][0].fill_(7)
    exactly(run(values := drawn()), interpret(layer(), values))


def test_a_training_step_is_replayed_to_the_same_bits() -> None:
    def step() -> planc.Plan:
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Conv2d(1, 2, 3),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
            torch.nn.Flatten(),
            torch.nn.Linear(18, 4),
        )
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)
        return planc.train_step(
            net, F.cross_entropy, optimizer, torch.ones(5, 1, 8, 8), torch.ones(5, dtype=torch.int64)
        )

    plan = step()
    want, got = dict(plan.state), dict(plan.state)
    cache = ExecutableCache(graphs=True)
    for _ in range(5):
        x, y = torch.randn(5, 1, 8, 8), torch.randint(4, (5,))

        def values(state: dict[str, torch.Tensor], x: torch.Tensor = x, y: torch.Tensor = y) -> Tensors:
            given = iter((x, y))
            return [state[p.path] if p.role.is_state else next(given) for p in plan.inputs]

        paths = [p.path for p in plan.outputs]
        expected = interpret(plan.graph, values(want), plan.constants)
        found = cache.run(plan.id, plan.program, values(got))
        exactly(found, expected)
        want, got = dict(zip(paths, expected, strict=True)), dict(zip(paths, found, strict=True))
    assert replays() == 3
    assert cache.refusals == {}


def test_a_scan_is_replayed_whole() -> None:
    body = Sketch("body", [DimVar("m")])
    total, rows = body.input("total", f32(2)), body.input("rows", f32(sym("m"), 2))
    new = body.op("aten.add", total, body.op("aten.sum", rows, dim=(0,)))
    inner = body.give(new, body.op("aten.exp", rows))
    s = Sketch("outer", [DimVar("n")])
    start, x = s.input("start", f32(2)), s.input("x", f32(sym("n"), 2))
    graph = s.give(*s.many("scan", (start,), (x,), (), body=s.subplan(inner), size=3))
    values = [torch.randn(2), torch.randn(17, 2)]
    run = executable(graph, values)
    for _ in range(4):
        values = [torch.randn(2), torch.randn(17, 2)]
        exactly(run(values), interpret(graph, values))
    assert replays() == 3  # of a long scan the first run is that of the code already


def test_layouts_are_those_of_the_inputs() -> None:
    graph = layer()
    x, w = torch.randn(3, 5).t(), torch.randn(8, 3)[::2]
    run = executable(graph, [x, w])
    for _ in range(4):
        x, w = torch.randn(3, 5).t(), torch.randn(8, 3)[::2]
        exactly(run([x, w]), interpret(graph, [x, w]))
    assert replays() == 2


def test_inputs_that_overlap_themselves_are_run_plainly() -> None:
    graph = layer()
    values = [torch.randn(1, 3).expand(5, 3), torch.randn(4, 3)]
    run = executable(graph, values)
    for _ in range(4):
        exactly(run(values), interpret(graph, values))
    assert replays() == 0
    assert run.refusal is not None
    assert run.refusal.startswith("it could not be recorded: RuntimeError: ")


def test_empty_tensors_and_mixed_dtypes() -> None:
    s = Sketch("mixed", [DimVar("b", 0)])
    x, y, n = s.input("x", f32(B, 2)), s.input("y", tensor(F64, 3)), s.input("n", tensor(I64, 3))
    graph = s.give(s.op("aten.exp", x), s.op("aten.mul", y, n), n, s.op("aten.gt", y, n))
    run = executable(
        graph, values := [torch.ones(0, 2), torch.randn(3, dtype=torch.float64), torch.arange(3)]
    )
    for _ in range(4):
        values[1] = torch.randn(3, dtype=torch.float64)
        exactly(run(values), interpret(graph, values))
    assert replays() == 2


def test_results_are_ordinary_tensors_also_under_inference_mode_and_autograd() -> None:
    run = executable(layer(), drawn())
    values = drawn()
    values[1].requires_grad_()
    for _ in range(4):
        with torch.inference_mode():
            got = run(values)
        assert not any(t.is_inference() or t.requires_grad for t in got)
        exactly(got, [t.detach() for t in interpret(layer(), values)])
    assert replays() == 2


# -- data that is checked ahead -----------------------------------


def picking() -> tuple[Graph, dict[str, torch.Tensor]]:
    """Rows by an input, through a view and through a constant, and a loss by classes."""
    s = Sketch("picking")
    x, rows, classes = (
        s.input("x", f32(3, 4)),
        s.input("rows", tensor(I64, 2, 1)),
        s.input("classes", tensor(I64, 2)),
    )
    fixed = s.const(torch.tensor([2, 0]))
    flat = s.op("aten.view", rows, size=(2,))
    picked = s.op("aten.index_select", s.op("aten.exp", x), flat, dim=0)
    also = s.op("aten.index", x, (s.op("aten.add", fixed, -1),))
    logs = s.op("aten.log_softmax", s.op("aten.add", picked, also), dim=1)
    loss, total = s.many("aten.nll_loss_forward", logs, classes, None)
    one = s.op("aten.full", size=(), fill_value=1.0, dtype=f32().dtype)
    graph = s.give(loss, s.op("aten.nll_loss_backward", one, logs, classes, None, total))
    return graph, s.data


def test_inputs_are_checked_before_a_replay_and_said_as_in_a_run() -> None:
    graph, data = picking()

    def values(row: int = 1, kind: int = 3) -> Tensors:
        return [torch.randn(3, 4), torch.tensor([[0], [row]]), torch.tensor([kind, 0])]

    run, plain = executable(graph, values(), data), executable(graph, values(), data)
    assert run.refusal is None
    for _ in range(4):
        given = values()
        exactly(run(given), interpret(graph, given, data))
    done = replays()
    assert done == 2
    for bad in (values(row=3), values(row=-1), values(kind=4), values(kind=-5)):
        with pytest.raises(ExecutionError) as replayed:
            run(bad)
        with pytest.raises(ExecutionError) as recorded:
            plain(bad)
        assert str(replayed.value) == str(recorded.value)
        assert (replayed.value.op, replayed.value.node) == (recorded.value.op, recorded.value.node)
        assert type(replayed.value.__cause__) is IndexError
    assert replays() == done
    exactly(run(given), interpret(graph, given, data))


def test_a_worker_says_what_was_wrong_with_data_of_a_replay() -> None:
    s = Sketch("rows")
    x, rows = s.input("x", f32(3, 4)), s.input("rows", tensor(I64, 2))
    plan = planc.Plan(Program(s.give(s.op("aten.index_select", x, rows, dim=0))))
    remote = plan.send(VirtualWorker("graphs", runner=ExecutableCache(graphs=True)))
    x = torch.randn(3, 4)
    for _ in range(4):
        assert torch.equal(remote(x, torch.tensor([2, 0])).get(), x[[2, 0]])
    assert replays() > 0
    with pytest.raises(
        planc.errors.PlancError, match=r"node 0 \(aten.index_select\) of it failed \(IndexError\)"
    ):
        remote(x, torch.tensor([2, 3])).get()


def test_a_bad_first_run_is_no_reason() -> None:
    graph, data = picking()
    bad = [torch.randn(3, 4), torch.tensor([[0], [1]]), torch.tensor([4, 0])]
    good = [torch.randn(3, 4), torch.tensor([[0], [1]]), torch.tensor([3, 0])]
    run = executable(graph, good, data)
    for values in (good, bad, good, good):
        if values is bad:
            with pytest.raises(ExecutionError, match=r"targets must be in 0\.\.3, got 4"):
                run(values)
        else:
            exactly(run(values), interpret(graph, values, data))
    assert run.refusal is None
    assert replays() == 1


# -- why not -----------------------------------


def sampling() -> Graph:
    s = Sketch("sampling")
    image, grid = s.input("image", f32(1, 1, 2, 2)), s.input("grid", f32(1, 3, 3, 2))
    how = {"interpolation_mode": 0, "padding_mode": 0, "align_corners": False}
    return s.give(s.op("aten.grid_sampler_2d", image, grid, **how))


def zeros(graph: Graph) -> Tensors:
    types = [port.value.type for port in graph.inputs]
    return [torch.zeros(type.at({}), dtype=type.dtype.torch) for type in types]


def updating(op: str, groups: str, lr: float | None = 0.1, **attrs: Any) -> Graph:
    """An update of one parameter; of its groups, "x" are like it, "n" counts steps, and "-" is empty."""
    s = Sketch("update")
    columns: list[Any] = [
        () if kind == "-" else (s.input(f"x{i}", f32(2) if kind == "x" else f32()),)
        for i, kind in enumerate(groups)
    ]
    return s.give(*s.many(op, *columns, s.input("lr", f32()) if lr is None else lr, **attrs))


def within(computed: bool) -> Graph:
    """Rows picked in a plan that is called, or by what was computed."""
    s = Sketch("within")
    x, rows = s.input("x", f32(3, 4)), s.input("rows", tensor(I64, 2))
    if computed:
        return s.give(s.op("aten.index_select", x, s.op("aten.abs", rows), dim=0))
    t = Sketch("inner")
    inner = t.give(t.op("aten.index_select", t.input("x", f32(3, 4)), t.input("rows", tensor(I64, 2)), dim=0))
    return s.give(*s.many("call", (x, rows), plan=s.subplan(inner)))


def keyed(role: Role) -> Graph:
    s = Sketch("keyed")
    key = s.input("key", tensor(I64), role=role)
    return s.give(s.op("random.rand", key, size=(2,), dtype=f32().dtype))


def long() -> Graph:
    body = Sketch("body")
    inner = body.give(body.op("aten.exp", body.op("aten.neg", body.input("x", f32(2)))))
    s = Sketch("long")
    return s.give(
        *s.many("scan", (s.input("x", f32(2)),), (), (), body=s.subplan(inner), trips=MOST // 2 + 1)
    )


WHYS: list[tuple[Graph, str]] = [
    (keyed(Role.KEY), "input 'key' is a random key: numbers are drawn from it on the CPU"),
    (keyed(Role.ARGUMENT), "plan 'keyed', node 0: random.rand draws its numbers on the CPU"),
    (
        updating("opt.adam", "xxxx-n"),
        "plan 'update', node 0: opt.adam takes the number of its steps out of a tensor",
    ),
    (
        updating("opt.adagrad", "xxxn"),
        "plan 'update', node 0: opt.adagrad takes the number of its steps out of a tensor",
    ),
    (
        updating("opt.sgd", "xxxn", momentum=0.9, dampening=0.1),
        "plan 'update', node 0: opt.sgd takes the number of its steps out of a tensor",
    ),
    (
        updating("opt.sgd", "xxx-", lr=None, momentum=0.9),
        "plan 'update', node 0: opt.sgd takes its learning rate out of a tensor",
    ),
    (
        within(computed=True),
        "plan 'within', node 1: aten.index_select has data checked that are neither inputs of the plan "
        "nor views of them",
    ),
    (
        within(computed=False),
        "plan 'inner', node 0: aten.index_select has data checked that are neither inputs of the plan "
        "nor views of them",
    ),
    (
        sampling(),
        "plan 'sampling', node 0: aten.grid_sampler_2d looks at its data on the host",
    ),
    (long(), f"it makes {MOST + 2} calls in a run, and those of a graph are {MOST} at most"),
]


@pytest.mark.parametrize(("graph", "why"), WHYS, ids=lambda x: x.name if isinstance(x, Graph) else "")
def test_why_a_plan_is_not_replayed(graph: Graph, why: str) -> None:
    values = zeros(graph)
    run = executable(graph, values)
    assert run.refusal == why
    for _ in range(3):
        exactly(run(values), interpret(graph, values))
    assert recordings() == []


@pytest.mark.parametrize(
    "graph",
    [
        updating("opt.sgd", "xx--"),
        updating("opt.sgd", "xxx-", momentum=0.9, nesterov=True),
        updating("opt.rmsprop", "xxx--"),
    ],
    ids=["plain", "momentum", "rmsprop"],
)
def test_updates_that_take_nothing_out_of_tensors_are_replayed(graph: Graph) -> None:
    run = executable(graph, [torch.rand(2) for _ in graph.inputs])
    for _ in range(4):
        values = [torch.rand(2) for _ in graph.inputs]
        exactly(run(values), interpret(graph, values))
    assert replays() == 2


def test_on_a_device_without_graphs_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(RECORDERS, "cpu")
    cache = ExecutableCache(graphs=True)
    for _ in range(4):
        cache.run("layer", Program(layer()), values := drawn())
    exactly(cache.run("layer", Program(layer()), values), interpret(layer(), values))
    assert cache.refusals == {"layer": "graphs are recorded on cuda; it runs on cpu"}


def test_graphs_are_of_the_backend_python() -> None:
    with pytest.raises(InputError, match="graphs are recorded of the backend 'python', not of 'inductor'"):
        ExecutableCache(backend="inductor", graphs=True)


# -- captures that fail -----------------------------------


def test_what_cannot_be_recorded_after_all_is_run_plainly_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def refuse(_self: Again, run: Callable[[], Tensors]) -> Tensors:
        tried.append(1)
        try:
            run()
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")
        except RuntimeError:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")  # noqa: B904

    monkeypatch.setattr(Again, "capture", refuse)
    graph, cache = layer(), ExecutableCache(graphs=True)
    try:
        raise KeyError("what the caller was handling is no reason")
    except KeyError:
        for _ in range(5):
            values = drawn()
            exactly(cache.run("layer", Program(graph), values), interpret(graph, values))
    why = (
        "it could not be recorded: RuntimeError: CUDA error: operation not permitted when stream is capturing"
    )
    assert cache.refusals == {"layer": why}
    assert len(tried) == 1
    assert recordings() == []
    assert cache.nbytes < KEPT


def test_a_kernel_that_waits_is_found_out_by_the_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the host takes out of tensors in spite of all rules ends the capture, not the run."""
    monkeypatch.setattr("planc.lower.replayable._LOOKING", set[str]())
    graph = sampling()
    run = executable(graph, values := zeros(graph))
    assert run.refusal is None
    for _ in range(3):
        exactly(run(values), interpret(graph, values))
    assert run.refusal is not None
    assert "not permitted when stream is capturing" in run.refusal


# -- deadlines, threads, memory -----------------------------------


def test_a_replay_does_not_begin_after_its_deadline() -> None:
    run = executable(layer(), values := drawn())
    for _ in range(3):
        run(values)
    with pytest.raises(LimitError):
        run(values, seconds=-1.0)
    exactly(run(values, seconds=60.0), interpret(layer(), values))
    assert replays() == 2


def test_runs_at_once_have_recordings_of_their_own() -> None:
    graph, cache = layer(), ExecutableCache(graphs=True)
    barrier = threading.Barrier(2)

    def work(seed: int) -> bool:
        good = True
        for _ in range(50):
            values = [torch.full((5, 3), float(seed)), torch.full((4, 3), 2.0)]
            barrier.wait()
            got = cache.run("layer", Program(graph), values)
            good &= all(map(torch.equal, got, interpret(graph, values)))
        return good

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(work, (1, 2)))
    assert 1 <= len(recordings()) <= 2
    assert len(recordings()) * KEPT < cache.nbytes < (len(recordings()) + 1) * KEPT


def test_streams_have_recordings_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    run = executable(layer(), values := drawn())
    run(values)
    for stream in (1, 2, 1, 2, 3, 1):
        monkeypatch.setattr("planc.lower.executable.stream_of", lambda _, stream=stream: stream)
        exactly(run(values), interpret(layer(), values))
    assert [each.replays for each in recordings()] == [2, 1, 0]
    assert run.nbytes >= 3 * KEPT


def test_memory_is_counted_when_recorded_and_when_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planc.lower.executable._IDLE", 1)
    run = executable(layer(), values := drawn())
    run(values)
    inputs = sum(v.nbytes for v in values)
    meeting = threading.Barrier(3)

    def meet(self: Again, run: Callable[[], Tensors]) -> Tensors:
        meeting.wait()
        self._run, self.outputs = run, run()
        return self.outputs

    monkeypatch.setattr(Again, "capture", meet)
    with ThreadPoolExecutor(3) as pool:
        assert len(list(pool.map(run, [values] * 3))) == 3
    assert len(recordings()) == 1  # two sets of buffers were dropped
    assert KEPT + inputs < run.nbytes < KEPT + inputs + 10_000


def test_what_the_cache_lets_go_of_frees_its_recordings() -> None:
    graph, cache = layer(), ExecutableCache(max_bytes=3 * KEPT, graphs=True)
    for rows in (1, 2, 3, 4):
        for _ in range(3):
            exactly(cache.run("layer", Program(graph), values := drawn(rows)), interpret(graph, values))
    assert len(cache) == 2
    assert len(recordings()) == 2  # without the garbage collector's help
    assert 2 * KEPT < cache.nbytes < 3 * KEPT


# -- every op -----------------------------------


CASES = [case for case in TABLE if case.op not in STRUCTURED and case.operands]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_op_takes_data_out_of_tensors_unsaid(case: Case) -> None:
    """Either there is a reason why not, or its code runs where that is refused, to the interpreter's bits."""
    made, _ = case.arguments(4)
    s = Sketch("one")
    values: Tensors = []

    def operand(sample: Any, value: Any) -> Any:
        if isinstance(sample, Sample):
            values.append(value)
            return s.input(f"x{len(values)}", sample.type.substitute({"b": 4}))
        return tuple(map(operand, sample, value)) if isinstance(sample, tuple) else at(sample)

    def at(value: Any) -> Any:
        if isinstance(value, DimExpr):
            return substitute(value, {"b": 4})
        return tuple(map(at, value)) if isinstance(value, tuple) else value

    attrs = {name: at(value) for name, value in case.attrs.items()}
    results = s.many(case.op, *map(operand, case.operands, made), **attrs)
    graph = s.give(*results)
    run = executable(graph, values)
    said = run.refusal
    for _ in range(3):
        exactly(run(values), interpret(graph, values))
    assert run.refusal == said
    assert replays() == (1 if said is None else 0)
