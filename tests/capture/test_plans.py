"""What users hold: Plan, @planc.plan and PlanModule; their state and files, and what they say of misuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim

import planc
from planc.errors import CaptureError, DecodeError, InputError, NotBuiltError, PlanError
from planc.ir.program import Program
from planc.plans import plan_of
from tests.capture.training import classified, close, mlp

data = classified((6,))


@planc.plan(args_shape=[(-1,), (-1,)])
def calcu(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Adds and halves."""
    z = x + y
    return torch.abs(z + x * y) / 2


class Nowhere:
    def receive_plan(self, plan: planc.Plan) -> Any:
        return plan.id


@pytest.fixture(scope="module")
def step() -> planc.Plan:
    net = mlp()
    return planc.train_step(net, F.cross_entropy, optim.Adam(net.parameters(), lr=0.01), *data(5))


# -- the decorator -----------------------------------


def test_a_decorated_function_is_a_plan() -> None:
    assert (calcu.__name__, calcu.__doc__) == ("calcu", "Adds and halves.")
    for n in (1, 2, 50):
        x, y = torch.randn(n), torch.randn(n)
        close(calcu(x, y), calcu.function(x, y))
    assert calcu.is_built
    assert calcu.id == planc.parse(calcu.text).id
    assert calcu.cost(d0=10).flops > 0
    assert calcu.send(Nowhere()) == calcu.id
    assert plan_of(calcu) is calcu.plan


def test_dims_that_the_code_makes_equal_become_one(tmp_path: Path) -> None:
    assert [str(p.value.type) for p in calcu.plan.inputs] == ["f32[d0]", "f32[d0]"]
    with pytest.raises(InputError, match=r"wants f32\[d0\], got f32\[3\]: dimension 0 is 3, not d0 = 2"):
        calcu(torch.ones(2), torch.ones(3))

    @planc.plan(args_shape=[(-1, 2), (2, -1)])
    def product(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x @ y

    assert [str(p.value.type) for p in product.plan.inputs] == ["f32[x0, 2]", "f32[2, y1]"]
    with pytest.raises(InputError, match=r"wants f32\[x0, 2\], got f32\[5, 3\]"):
        product(torch.ones(5, 3), torch.ones(3, 5))


def test_dtypes_are_float32_unless_they_are_given() -> None:
    @planc.plan(args_shape=[(-1, 3), (4,)], args_dtype=[torch.float64, torch.int64])
    def pick(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return x.index_select(1, rows)

    x = torch.randn(2, 3, dtype=torch.float64)
    assert torch.equal(pick(x, torch.tensor([0, 2, 1, 1])), x[:, [0, 2, 1, 1]])


def test_an_unbuilt_function_runs_and_cannot_be_sent(tmp_path: Path) -> None:
    @planc.plan
    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    assert double(torch.ones(2)).tolist() == [2.0, 2.0]
    assert not double.is_built
    for use in (lambda: double.send(Nowhere()), lambda: double.id, lambda: double.save(tmp_path / "d.planc")):
        with pytest.raises(
            NotBuiltError, match=r"double is not built yet.*call build\(\*example_inputs\) first"
        ):
            use()
    assert double.build(torch.ones(5)).send(Nowhere()) == double.id
    assert double(torch.ones(3)).tolist() == [2.0] * 3


@pytest.mark.parametrize(
    ("shapes", "dtypes", "error", "message"),
    [
        (
            [(-2,)],
            None,
            ValueError,
            r"args_shape\[0\] is \(-2,\): a dim is a size, or -1 if it varies; got -2",
        ),
        ([(3, -1), (2, -3)], None, ValueError, r"args_shape\[1\] is \(2, -3\).*got -3"),
        ([(2,), (2,)], [torch.float32], ValueError, "args_dtype has 1 entries for 2 shapes"),
        ([(2,), (3,)], None, CaptureError, r"shapes \[2\] and \[3\] cannot be broadcast"),
    ],
)
def test_shapes_that_cannot_be(shapes: Any, dtypes: Any, error: type[Exception], message: str) -> None:
    def add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y

    with pytest.raises(error, match=f"(?s){message}"):
        planc.plan(args_shape=shapes, args_dtype=dtypes)(add if len(shapes) > 1 else torch.relu)


# -- modules -----------------------------------


class Net(planc.PlanModule):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 3)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.fc(x))


def test_a_plan_module_sends_the_parameters_that_it_has_now() -> None:
    net = Net()
    with pytest.raises(NotBuiltError, match="Net is not built yet"):
        net.send(Nowhere())
    net.eval()
    assert net.build(torch.ones(5, 2)) is net
    assert net.is_built
    assert set(net.state_dict()) == {p.path for p in net.plan.graph.state()}  # the plan is no submodule of it
    before = net.id
    with torch.no_grad():
        net.fc.weight.fill_(2.0)
    assert net.id == before == net.send(Nowhere())
    x = torch.randn(4, 2)
    close(net.plan(x), net(x))
    assert net.plan.state["fc.weight"].data_ptr() != net.fc.weight.data_ptr()


# -- state -----------------------------------


def test_a_call_replaces_the_state_and_a_failed_one_does_not(step: planc.Plan) -> None:
    plan = step.with_state({})
    before = dict(plan.state)
    plan(*data(4))
    assert plan.state["0.weight.step"].item() == 1
    assert before["0.weight.step"].item() == step.state["0.weight.step"].item() == 0
    after = dict(plan.state)
    x, y = data(4)
    with pytest.raises(planc.errors.ExecutionError, match="nll_loss_forward failed"):
        plan(x, y + 100)
    assert plan.state == after


def test_with_state_changes_that_state_alone(step: planc.Plan) -> None:
    weight = torch.zeros(8, 6)
    plan = step.with_state({"0.weight": weight})
    assert plan.state["0.weight"] is weight
    assert plan.state["2.weight"] is step.state["2.weight"]
    assert plan.id == step.id
    with pytest.raises(InputError, match=r"has no state 'weight'; it has .*'0.weight'"):
        step.with_state({"weight": weight})
    with pytest.raises(InputError, match=r"wants f32\[8, 6\], got f32\[2\]"):
        step.with_state({"0.weight": torch.zeros(2)})(*data(2))


def test_missing_state_says_so(step: planc.Plan) -> None:
    bare = planc.Plan(step.program)
    with pytest.raises(
        InputError, match=r"needs the state '0.weight' \(f32\[8, 6\]\), which it was not given"
    ):
        bare(*data(2))
    assert bare.state_dict() == {}


def test_state_dict_is_a_copy_that_loads_into_the_module(step: planc.Plan) -> None:
    plan = step.with_state({})
    plan(*data(4))
    found = plan.state_dict()
    assert list(found) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    found["0.weight"].zero_()
    assert plan.state["0.weight"].abs().sum() > 0
    net = mlp()
    net.load_state_dict(plan.state_dict())
    assert torch.equal(net[0].weight, plan.state["0.weight"])


def test_what_a_plan_says_of_itself(step: planc.Plan) -> None:
    assert repr(step).startswith("<Plan train_sequential(input: f32[b, 6], target: i64[b]) -> (f32[]), ")
    assert f"id {step.id[:12]}>" in repr(step)
    assert [var.name for var in step.dims] == ["b"]
    assert step.records[0].nodes_before > len(step.nodes)


# -- files -----------------------------------


def sorted_state(plan: planc.Plan) -> dict[str, torch.Tensor]:
    return dict(sorted(plan.state.items()))


def test_save_and_load_compute_the_same(step: planc.Plan, tmp_path: Path) -> None:
    plan = step.with_state({})
    plan(*data(4))
    plan.save(tmp_path / "step.planc")
    loaded = planc.load(tmp_path / "step.planc")
    assert loaded.id == plan.id
    close(sorted_state(loaded), sorted_state(plan))
    x, y = data(9)
    close(loaded(x, y), plan(x, y))
    close(sorted_state(loaded), sorted_state(plan))
    (tmp_path / "other").write_bytes(b"nothing")
    with pytest.raises(DecodeError):
        planc.load(tmp_path / "other")


def test_text_and_back_computes_the_same(step: planc.Plan) -> None:
    parsed = planc.parse(step.text)
    assert parsed.id == step.id
    x, y = data(3)
    close(parsed.with_state(step.state)(x, y), step.with_state({})(x, y))


def test_constants_travel_with_the_plan(tmp_path: Path) -> None:
    table = torch.randn(4, 3)
    plan = planc.trace(lambda i: table[i] + torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1, 2]))
    plan.save(tmp_path / "c.planc")
    i = torch.tensor([3, 0, 0])
    with pytest.raises(InputError, match=r"the data of constant sha256:.* is missing"):
        planc.Plan(Program(plan.graph))(i)
    close(planc.load(tmp_path / "c.planc")(i), table[i] + torch.tensor([1.0, 2.0, 3.0]))


def test_optimising_changes_the_program_and_not_its_meaning() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        return (x + 1) * (x + 1) + torch.zeros(3).sum()

    raw = planc.trace(f, torch.ones(5, 3), optimize=False)
    small = planc.optimize(raw)
    assert len(small.nodes) < len(raw.nodes)
    assert small.records
    x = torch.randn(2, 3)
    close(small(x), raw(x))
    planc.verify(small)
    with pytest.raises(PlanError):
        planc.epoch(small, 0)


# -- programs of torch.export -----------------------------------


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": self.norm(self.layer(x)) * scale}


def test_a_torch_export_file_becomes_a_plan(tmp_path: Path) -> None:
    net, file = Scaled(), tmp_path / "scaled-net.pt2"
    batch = torch.export.Dim("batch", min=2, max=512)
    example = (torch.randn(5, 3),), {"scale": torch.randn(4)}
    dynamic = {"x": {0: batch}, "scale": None}
    torch.export.save(torch.export.export(net, *example, dynamic_shapes=dynamic), file)
    plan = planc.load_exported(file)
    assert plan.name == "scaled_net"
    assert [f"{var.name} in {var.lo}..{var.hi}" for var in plan.dims] == ["b in 2..512"]
    for rows in (2, 9):
        x, scale = torch.randn(rows, 3), torch.randn(4)
        close(plan(x, scale), net(x, scale=scale))
        close(plan.state_dict(), dict(net.state_dict()))
    with pytest.raises(InputError, match=r"dim b is 1 .* outside its range 2\.\.512"):
        plan(torch.ones(1, 3), torch.ones(4))


def test_a_file_that_is_no_exported_program(tmp_path: Path) -> None:
    file = tmp_path / "x.pt2"
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(DecodeError, match=r"x.pt2 is no program that torch.export.save wrote"):
        planc.load_exported(file)
    with pytest.raises(FileNotFoundError):
        planc.load_exported(tmp_path / "none.pt2")
