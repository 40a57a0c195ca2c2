"""Server optimizers: each against its paper's rule, in numbers worked out by hand beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import nn

import planc
from planc.errors import InputError
from planc.ir import Role
from runtime.federated.servers import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedYogi,
    Server,
    ServerUpdate,
    staleness_weight,
)

ALL: list[Server] = [FedAvg(), FedAvg(0.5), FedAvgM(), FedAdagrad(), FedAdam(), FedYogi()]


def vector(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def run(
    server: Server, start: Sequence[float], means: Sequence[Sequence[float]]
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """The model after each round, and the server's state after the last."""
    model = {"w": vector(*start)}
    update = server.plan(model, ["w"])
    state, models = update.initial(model), list[torch.Tensor]()
    for mean in means:
        model, state = update.step(model, {"w": vector(*mean)}, state)
        models.append(model["w"])
    return models, state


def close(have: torch.Tensor, *want: float) -> None:
    torch.testing.assert_close(have, vector(*want), rtol=1e-13, atol=0)


# -- the papers' rules ---------------------------------------------------------------------------------------


def test_fedavg_with_another_rate_goes_a_part_of_the_way() -> None:
    """From 1 towards 3 and from -2 towards -3, three quarters of it: 1 + 0.75*2, -2 - 0.75*1."""
    models, state = run(FedAvg(lr=0.75), (1, -2), [(3, -3)])
    close(models[0], 2.5, -2.75)
    assert state == {}


def test_fedavgm() -> None:
    """Hsu et al.: v = 0.5 v + delta, x = x + 2 v.

    Round 1: delta = (0.5, -0.25) = v; x = (1 + 1, -2 - 0.5) = (2, -2.5).
    Round 2: delta = (2.5 - 2, 0) = (0.5, 0); v = (0.25 + 0.5, -0.125); x = (2 + 1.5, -2.5 - 0.25).
    """
    models, state = run(FedAvgM(lr=2, momentum=0.5), (1, -2), [(1.5, -2.25), (2.5, -2.5)])
    close(models[0], 2, -2.5)
    close(models[1], 3.5, -2.75)
    close(state["w.momentum"], 0.75, -0.125)


def test_fedadagrad() -> None:
    """Reddi et al., algorithm 2: m = m/2 + delta/2, v = v + delta^2, x = x + 2 m / (sqrt(v) + 0.5).

    It begins with m = 0 and v = tau^2 = 1/4.
    Round 1: delta = 3/8; m = 3/16; v = 16/64 + 9/64 = 25/64; x = 1 + (3/8) / (5/8 + 4/8) = 4/3.
    Round 2: delta = 9/64; m = 12/128 + 9/128 = 21/128; v = 1600/4096 + 81/4096 = (41/64)^2;
             x = 4/3 + (21/64) / (41/64 + 32/64) = 4/3 + 21/73.
    The other number does not move: delta = 0 leaves m = 0 and v = 1/4.
    """
    server = FedAdagrad(lr=2, beta1=0.5, tau=0.5)
    models, state = run(server, (1, -2), [(1.375, -2), (4 / 3 + 9 / 64, -2)])
    close(models[0], 4 / 3, -2)
    close(models[1], 4 / 3 + 21 / 73, -2)
    close(state["w.momentum"], 21 / 128, 0)
    close(state["w.second_moment"], (41 / 64) ** 2, 0.25)


def test_fedadagrad_has_no_first_moment_by_itself() -> None:
    """beta1 = 0, as in the paper's experiments: x = 1 + 2 * (3/8) / (5/8 + 4/8) = 1 + 2/3."""
    models, _ = run(FedAdagrad(lr=2, tau=0.5), (1,), [(1.375,)])
    close(models[0], 5 / 3)


def test_fedadam() -> None:
    """Reddi et al., algorithm 2: m = m/2 + delta/2, v = 3/4 v + delta^2/4, x = x + 2 m / (sqrt(v) + 0.5).

    It begins with m = 0 and v = 1/4. The first number:
    round 1: delta = 1/2; m = 1/4; v = 3/16 + 1/16 = 1/4; x = 1 + (1/2) / (1/2 + 1/2) = 1.5;
    round 2: delta = -1/2; m = 1/8 - 1/4 = -1/8; v = 1/4; x = 1.5 - (1/4) / 1 = 1.25.
    The second:
    round 1: delta = 0; m = 0; v = 3/16; x = -2;
    round 2: delta = 5/16; m = 5/32; v = 144/1024 + 25/1024 = (13/32)^2;
             x = -2 + (10/32) / (13/32 + 16/32) = -2 + 10/29.
    """
    server = FedAdam(lr=2, beta1=0.5, beta2=0.75, tau=0.5)
    models, state = run(server, (1, -2), [(1.5, -2), (1.0, -1.6875)])
    close(models[0], 1.5, -2)
    close(models[1], 1.25, -2 + 10 / 29)
    close(state["w.momentum"], -1 / 8, 5 / 32)
    close(state["w.second_moment"], 1 / 4, (13 / 32) ** 2)


def test_fedyogi() -> None:
    """Reddi et al., algorithm 2: as FedAdam, with v = v - delta^2/4 * sign(v - delta^2).

    The first number:
    round 1: delta = 1/2, v = delta^2: sign 0, v = 1/4; m = 1/4; x = 1 + (1/2) / (1/2 + 1/2) = 1.5;
    round 2: delta = 0: v = 1/4; m = 1/8; x = 1.5 + (1/4) / 1 = 1.75.
    The second:
    round 1: delta = 3/4, v < delta^2: v = 16/64 + 9/64 = 25/64; m = 3/8; x = -2 + (3/4) / (9/8) = -4/3;
    round 2: delta = 7/20, v > delta^2: v = 0.390625 - 0.1225/4 = 0.36; m = 3/16 + 7/40 = 0.3625;
             x = -4/3 + 0.725 / (0.6 + 0.5) = -4/3 + 29/44.
    """
    server = FedYogi(lr=2, beta1=0.5, beta2=0.75, tau=0.5)
    models, state = run(server, (1, -2), [(1.5, -1.25), (1.5, -4 / 3 + 0.35)])
    close(models[0], 1.5, -4 / 3)
    close(models[1], 1.75, -4 / 3 + 29 / 44)
    close(state["w.momentum"], 0.125, 0.3625)
    close(state["w.second_moment"], 0.25, 0.36)


def test_the_rules_of_the_defaults() -> None:
    """One step of size delta = 0.5 by the usual settings, tau = 1e-3, so v begins with 1e-6.

    FedAdam: m = 0.05; v = 0.99e-6 + 0.0025 = 0.00250099; 0.05 / (sqrt(v) + 0.001) = 0.98020190...
    FedYogi: v = 1e-6 + 0.0025 = 0.002501; 0.05 / (sqrt(v) + 0.001) = 0.9802...
    FedAdagrad: v = 1e-6 + 0.25 = 0.250001; 0.5 / (sqrt(v) + 0.001) = 0.998002...
    """
    one = {
        FedAdam(lr=0.1): 1 + 0.1 * 0.05 / (0.00250099**0.5 + 0.001),
        FedYogi(lr=0.1): 1 + 0.1 * 0.05 / (0.002501**0.5 + 0.001),
        FedAdagrad(lr=0.1): 1 + 0.1 * 0.5 / (0.250001**0.5 + 0.001),
        FedAvgM(): 1.5,
        FedAvg(): 1.5,
    }
    for server, want in one.items():
        torch.testing.assert_close(run(server, (1,), [(1.5,)])[0][0], vector(want), rtol=1e-9, atol=0)


@pytest.mark.parametrize("staleness", range(4))
def test_staleness_weight(staleness: int) -> None:
    """1/sqrt(1 + s): 1, 0.7071..., 0.5773..., 0.5; with the exponent 2, 1/(1 + s)^2."""
    assert staleness_weight(staleness) == pytest.approx([1, 0.70710678, 0.57735027, 0.5][staleness])
    assert staleness_weight(staleness, 2) == pytest.approx([1, 0.25, 1 / 9, 0.0625][staleness])
    assert staleness_weight(staleness, 0) == 1


# -- exactness -----------------------------------------------------------------------------------------------


def small_net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def made(server: Server) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], ServerUpdate]:
    """A model with buffers, a mean of models, and the server's update for it."""
    net = small_net()
    model = {path: tensor.clone() for path, tensor in net.state_dict().items()}
    generator = torch.Generator().manual_seed(2)
    mean = {
        path: x + torch.randn(x.shape, generator=generator) if x.is_floating_point() else x + 7
        for path, x in model.items()
    }
    return model, mean, server.plan(model, [path for path, _ in net.named_parameters()])


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_fedavg_gives_exactly_the_mean(dtype: torch.dtype) -> None:
    model = {"w": torch.tensor([1.0, -3e4, 1e-7, 0.0], dtype=dtype)}
    mean = {"w": torch.tensor([1e-6, 1e-7, -3e4, -0.0], dtype=dtype)}
    new, state = FedAvg().plan(model, ["w"]).step(model, mean, {})
    assert same(new, mean)
    assert torch.equal(torch.signbit(new["w"]), torch.signbit(mean["w"]))
    assert state == {}


@pytest.mark.parametrize("server", ALL, ids=repr)
def test_buffers_become_the_mean_and_nothing_is_kept_of_them(server: Server) -> None:
    model, mean, update = made(server)
    new, state = update.step(model, mean, update.initial(model))
    for path in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert torch.equal(new[path], mean[path])
        assert new[path].dtype == mean[path].dtype
        assert not any(kept.startswith(path) for kept in state)
    assert list(new) == list(model)


@pytest.mark.parametrize("server", ALL[1:], ids=repr)
def test_a_model_of_f32_is_rounded_once_a_round(server: Server) -> None:
    """The update is computed in f64 however long the run is; what is kept is f64 and never rounded."""
    model, mean, update = made(server)
    wide = {path: x.double() if x.is_floating_point() else x for path, x in model.items()}
    exact = server.plan(wide, update.parameters)
    state, exact_state = update.initial(model), exact.initial(wide)
    for _ in range(4):  # the fourth runs generated code
        given = {path: x.double() if x.is_floating_point() else x for path, x in model.items()}
        wide_mean = {path: x.double() if x.is_floating_point() else x for path, x in mean.items()}
        model, state = update.step(model, mean, state)
        wide, exact_state = exact.step(given, wide_mean, exact_state)
        assert same(model, {path: x.to(model[path].dtype) for path, x in wide.items()})
        assert same(state, exact_state)


@pytest.mark.parametrize("server", ALL, ids=repr)
def test_a_step_changes_nothing_that_it_is_given(server: Server) -> None:
    model, mean, update = made(server)
    state = update.initial(model)
    before = [{k: v.clone() for k, v in given.items()} for given in (model, mean, state)]
    first = update.step(model, mean, state)
    assert all(same(a, b) for a, b in zip(before, (model, mean, state), strict=True))
    again = update.step(model, mean, state)
    assert same(first[0], again[0])
    assert same(first[1], again[1])
    pointers = {x.data_ptr() for given in (model, mean, state) for x in given.values()}
    assert not pointers & {x.data_ptr() for made in first for x in made.values()}


@pytest.mark.parametrize("server", ALL, ids=repr)
def test_state_is_by_path_in_plain_tensors(server: Server) -> None:
    model, mean, update = made(server)
    names = {"FedAvg": [], "FedAvgM": ["momentum"]}.get(type(server).__name__, ["momentum", "second_moment"])
    want = [f"{path}.{name}" for path in update.parameters for name in names]
    state = update.initial(model)
    _, new = update.step(model, mean, state)
    for held in (state, new):
        assert list(held) == want
        for path, tensor in held.items():
            assert tensor.dtype is torch.float64
            assert tensor.shape == model[path.rpartition(".")[0]].shape
            assert tensor.is_contiguous()
            assert not tensor.requires_grad


def test_a_scalar_and_an_empty_parameter() -> None:
    model = {"scale": torch.tensor(1.0), "none": torch.zeros(0, 3)}
    update = FedAdam(lr=2, beta1=0.5, beta2=0.75, tau=0.5).plan(model, model)
    new, _ = update.step(
        model, {"scale": torch.tensor(1.5), "none": torch.zeros(0, 3)}, update.initial(model)
    )
    assert new["scale"].item() == 1.5
    assert new["none"].shape == (0, 3)


# -- the plan ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", ALL, ids=repr)
def test_the_update_is_a_plan(server: Server) -> None:
    """Readable, verified, of one id for one model's types, whatever its values."""
    model, mean, update = made(server)
    planc.verify(update.plan)
    assert planc.parse(update.plan.text).id == update.plan.id
    assert server.plan(mean, update.parameters).plan.id == update.plan.id
    assert [port.path for port in update.plan.graph.arguments()] == [f"mean.{path}" for path in model]
    roles = {port.path: port.role for port in update.plan.inputs if port.path in model}
    assert {path for path, role in roles.items() if role is Role.PARAMETER} == set(update.parameters)
    assert {path for path, role in roles.items() if role is Role.BUFFER} == set(model) - set(
        update.parameters
    )
    assert not update.plan.graph.results()


def test_the_plan_reads_as_the_paper_does() -> None:
    update = FedAvgM(lr=0.5, momentum=0.9).plan({"w": torch.zeros(3)}, ["w"])
    assert update.plan.text == (
        'plan fedavgm(\n    mean_w: f32[3] "mean.w",\n    param w: f32[3],\n'
        '    optim w_momentum: f64[3] "w.momentum",\n) -> (\n    param new_w: f32[3] "w",\n'
        '    optim new_w_momentum: f64[3] "w.momentum",\n) {\n'
        "  v0: f64[3] = aten.to(w, dtype=f64)\n"
        "  v1: f64[3] = aten.to(mean_w, dtype=f64)\n"
        "  v2: f64[3] = aten.sub(v1, v0)\n"
        "  v3: f64[3] = aten.mul(w_momentum, 0.9)\n"
        "  v4: f64[3] = aten.add(v3, v2)\n"
        "  v5: f64[3] = aten.mul(v4, 0.5)\n"
        "  v6: f64[3] = aten.add(v0, v5)\n"
        "  v7: f32[3] = aten.to(v6, dtype=f32)\n"
        "  return v7, v4\n}\n"
    )


def test_rates_in_scientific_notation_arrive_whole() -> None:
    models, _ = run(FedAvg(lr=1e-17), (0,), [(3,)])
    assert models[0].item() == 3e-17
    models, _ = run(FedAvg(lr=1e30), (0,), [(3,)])
    assert models[0].item() == 3 * 1e30


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", [FedAvg, FedAvgM, FedAdagrad, FedAdam, FedYogi])
@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf"), "0.1", True, None])
def test_numbers_out_of_range_are_refused(server: Any, bad: Any) -> None:
    for name in (field.name for field in dataclasses.fields(server)):
        wants = "from 0 to below 1" if name in ("momentum", "beta1", "beta2") else "a finite number above 0"
        with pytest.raises(InputError, match=rf"{server.__name__}: {name} must be {wants}, got"):
            server(**{name: bad})


@pytest.mark.parametrize(
    "make",
    [
        lambda: FedAvg(lr=0),
        lambda: FedAvgM(momentum=1),
        lambda: FedAdam(tau=0),
        lambda: FedYogi(beta2=1.0),
        lambda: FedAdagrad(beta1=1),
        lambda: staleness_weight(-1),
        lambda: staleness_weight(1, -0.5),
        lambda: staleness_weight(1, float("nan")),
    ],
)
def test_bounds_are_refused(make: Any) -> None:
    with pytest.raises(InputError, match=r"got (-?[\d.]+|nan)$"):
        make()


@pytest.mark.parametrize("server", ALL, ids=repr)
def test_a_model_that_does_not_fit_is_refused(server: Server) -> None:
    model, mean, update = made(server)
    state = update.initial(model)
    less = {path: x for path, x in mean.items() if path != "0.bias"}
    with pytest.raises(InputError, match=r"the mean must have the paths .*'0.bias' is missing"):
        update.step(model, less, state)
    with pytest.raises(InputError, match=r"the model must have the paths .* it has no 'more'"):
        update.step({**model, "more": torch.zeros(1)}, mean, state)
    with pytest.raises(InputError, match=r"the model must have the paths"):
        update.initial(less)
    with pytest.raises(InputError, match=r"mean\.0\.bias.*f32\[3\]"):
        update.step(model, {**mean, "0.bias": torch.zeros(4)}, state)
    with pytest.raises(InputError, match=r"mean\.0\.bias.*f32\[3\]"):
        update.step(model, {**mean, "0.bias": torch.zeros(3, dtype=torch.float64)}, state)


def test_state_that_is_missing_is_named() -> None:
    model, mean, update = made(FedAdam())
    state = update.initial(model)
    del state["2.weight.second_moment"]
    with pytest.raises(InputError, match=r"needs the state '2\.weight\.second_moment'"):
        update.step(model, mean, state)


def test_parameters_that_cannot_be_are_refused() -> None:
    model = {"w": torch.zeros(2), "steps": torch.tensor(0), "w.momentum": torch.zeros(2)}
    with pytest.raises(InputError, match=r"no parameter 'v'; it has \['steps', 'w', 'w.momentum'\]"):
        FedAdam().plan(model, ["w", "v"])
    with pytest.raises(InputError, match=r"'steps' is i64\[\]; leave it out"):
        FedAdam().plan(model, ["steps"])
    with pytest.raises(InputError, match=r"at 'w\.momentum', where the server keeps state of its own"):
        FedAdam().plan(model, ["w"])
    with pytest.raises(InputError, match="at least one tensor"):
        FedAdam().plan({}, [])
    with pytest.raises(InputError, match="which plans do not have"):
        FedAvg().plan({"w": torch.zeros(2), "c": torch.zeros(2, dtype=torch.complex64)}, ["w"])
