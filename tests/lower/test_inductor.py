"""The opt-in backend: what torch is given computes the same, what it compiles nearly; clear errors."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

import planc
from planc.errors import ExecutionError, InputError, LimitError
from planc.ir import Graph
from planc.ir.program import Program
from planc.lower import ExecutableCache, bind_tensors
from planc.lower.inductor import InductorExecutable, find_compiler
from runtime import VirtualWorker
from runtime.interpreter import interpret
from tests.lower.test_results import step_of
from tests.strategies import CONSTANTS, bindings_for, graphs, inputs_for

CPU = torch.device("cpu")


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch compiles nothing: what it would be given runs as it is."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr("planc.lower.inductor.find_compiler", lambda: "")
    monkeypatch.setattr("planc.plans.find_compiler", lambda: "")


def plainly(graph: Graph, values: list[torch.Tensor], constants: Any) -> list[torch.Tensor]:
    return InductorExecutable(Program(graph, constants), bind_tensors(graph, values), CPU)(values)


@pytest.mark.parametrize("name", ["perceptron, Adam", "convolutions, SGD"])
def test_torch_is_given_what_the_interpreter_does(name: str, uncompiled: None) -> None:
    step, batch = step_of(name)
    for plan in (step, planc.epoch(step, batch_size=3, shuffle=False)):
        arguments = iter(batch())
        values = [plan.state[p.path] if p.role.is_state else next(arguments) for p in plan.inputs]
        before = [t.clone() for t in values]
        want = interpret(plan.graph, values, plan.constants)
        with torch.inference_mode():
            got = plainly(plan.graph, values, plan.constants)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(values, before, strict=True))
        assert not any(t.is_inference() or t.requires_grad for t in got)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_so_it_is_with_any_graph(data: st.DataObject, uncompiled: None) -> None:
    graph = data.draw(graphs())
    values = inputs_for(graph, data.draw(bindings_for(graph)))
    try:
        want = [t.clone() for t in interpret(graph, values, CONSTANTS)]
    except ExecutionError:
        reject()
    got = plainly(graph, values, CONSTANTS)
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    held = [t.untyped_storage().data_ptr() for t in (*values, *CONSTANTS.values(), *got) if t.numel()]
    assert all(held.count(t.untyped_storage().data_ptr()) == 1 for t in got if t.numel())


def test_a_scan_that_takes_too_long_ends(uncompiled: None) -> None:
    step, batch = step_of("perceptron, Adam")
    epoch = planc.epoch(step, batch_size=1, shuffle=False)
    arguments = iter(batch())
    values = [epoch.state[p.path] if p.role.is_state else next(arguments) for p in epoch.inputs]
    run = InductorExecutable(epoch.program, bind_tensors(epoch.graph, values), CPU)
    with pytest.raises(LimitError, match="took longer than it may"):
        run(values, 0.0)
    assert len(run(values)) == len(epoch.outputs)


def test_what_torch_cannot_do_says_which_backend(uncompiled: None) -> None:
    plan = planc.trace(lambda x, i: x.index_select(0, i), torch.ones(3), torch.tensor([0, 1]), name="pick")
    with pytest.raises(ExecutionError, match="plan 'pick', backend \"inductor\": IndexError: index out"):
        plan.with_backend("inductor")(torch.ones(3), torch.tensor([0, 7]))


def test_there_must_be_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planc.parse("plan double(x: f32[b]) -> f32[b] { return x + x }")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match=r"needs a C\+\+ compiler, and there is no no-such-compiler on"):
        plan.with_backend("inductor")
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=r"there is no g\+\+ or clang\+\+"):
        ExecutableCache(backend="inductor").run(plan.id, plan.program, [torch.ones(2)])


def test_a_backend_must_be_known() -> None:
    plan = planc.parse("plan double(x: f32[b]) -> f32[b] { return x + x }")
    for use in (plan.with_backend, lambda name: ExecutableCache(backend=name)):
        chosen: Callable[[Any], object] = use
        with pytest.raises(
            InputError, match="there is no backend 'triton'; there are 'python' and 'inductor'"
        ):
            chosen("triton")
    assert plan.backend == "python"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it imports its compiler
def test_torch_compiles_a_plan_here_and_at_a_worker() -> None:
    """Within 1e-6 of the op table. The product scaled and added is what torch's own fusion gets wrong."""
    plan = planc.parse(
        """
        plan tiny(x: f32[b, 4], w: f32[4, 4], param p: f32[b, 4]) -> (r: f32[b, 4], param p: f32[b, 4]) {
          return tanh(x * x + 2.0) * x - exp(p), add(p, x @ w, alpha=-0.1)
        }
        """
    )
    x, w, state = torch.randn(3, 4), torch.randn(4, 4), {"p": torch.randn(3, 4)}
    usual, fused = plan.with_state(state), plan.with_state(state).with_backend("inductor")
    try:
        find_compiler()
    except InputError as error:  # a machine without one: the plan says so, and how to get one
        with pytest.raises(InputError, match=re.escape(str(error))):
            fused(x, w)
        return
    torch.testing.assert_close(fused(x, w), usual(x, w), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fused.state, usual.state, rtol=1e-6, atol=1e-6)
    assert fused.with_state(state).optimized().backend == "inductor"
    worker = VirtualWorker("bob", runner=ExecutableCache(backend="inductor"))
    remote = plan.with_state(state).send(worker)
    torch.testing.assert_close(remote(x, w).get(), plan.with_state(state)(x, w), rtol=1e-6, atol=1e-6)
