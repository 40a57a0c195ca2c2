"""What the passes that change arithmetic do to the golden plans: no bit of any value or gradient differs.

Inputs are ordinary numbers, and then numbers at which rewriting goes wrong: zeros of both signs, infinities,
NaN, the smallest and the largest.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from planc.ir import DType, Graph, Role
from planc.ir.program import Program
from planc.lower import ExecutableCache
from planc.passes import OPTIONAL, PASSES, named, run_pipeline
from planc.passes.fusions import FUSIONS, GROUPS
from planc.passes.simplify import RULES, Simplify
from planc.text import parse
from runtime.interpreter import interpret
from tests.strategies import inputs_for

FOLDER = Path(__file__).parent / "golden"
NAMES = ("simplify", "hoist", "fuse", "group", "fuse_elementwise")
FILES = sorted(path for name in NAMES for path in (FOLDER / name).glob("*.plan"))
ODD = (0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-45, -1e-40, 3e38, 65504.0, 1.0, -3.0)
every = pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
sized = pytest.mark.parametrize("size", [4, 5])


def program_of(path: Path) -> Program:
    module = parse(path.read_text(encoding="utf-8").split("# == after")[0], file=path.name)
    return Program(module.main, module.constants)


def values_for(graph: Graph, size: int) -> list[torch.Tensor]:
    return inputs_for(graph, {var.name: max(var.lo, size) for var in graph.dims}, seed=size)


def same_bits(got: torch.Tensor | None, want: torch.Tensor | None) -> bool:
    """Equal bit for bit, but that any NaN is any other."""
    if got is None or want is None:
        return got is want
    if got.dtype != want.dtype or got.shape != want.shape:
        return False
    if not got.is_floating_point():
        return torch.equal(got, want)
    nan = got.isnan()
    bits = torch.int64 if got.dtype is torch.float64 else torch.int32 if got.itemsize == 4 else torch.int16
    return torch.equal(nan, want.isnan()) and torch.equal(got[~nan].view(bits), want[~nan].view(bits))


@every
@sized
def test_values(path: Path, size: int) -> None:
    before = program_of(path)
    (step,) = named([path.parent.name])
    after = step.apply(before).program
    ordinary = values_for(before.graph, size)
    odd = [strange(value) for value in ordinary]
    for values in (ordinary, odd):
        want = interpret(before.graph, values, before.constants)
        for got in (
            interpret(after.graph, values, after.constants),
            ExecutableCache().run("after", after, values),
        ):
            assert [same_bits(g, w) for g, w in zip(got, want, strict=True)] == [True] * len(want)


def strange(value: torch.Tensor) -> torch.Tensor:
    if not value.is_floating_point():
        return value
    numbers = torch.tensor(ODD, dtype=torch.float64).to(value.dtype)
    return numbers.repeat(value.numel() // len(ODD) + 1)[: value.numel()].reshape(value.shape)


def trains(path: Path) -> bool:
    """Whether a plan takes its own gradients, so that nobody takes them through it."""
    return any(port.role is Role.PARAMETER for port in program_of(path).graph.updates())


@pytest.mark.parametrize(
    "path", [p for p in FILES if not trains(p)], ids=lambda p: f"{p.parent.name}/{p.stem}"
)
def test_gradients(path: Path) -> None:
    before = program_of(path)
    (step,) = named([path.parent.name])
    after = step.apply(before).program
    values = values_for(before.graph, 4)
    got, want = gradients(after, values), gradients(before, values)
    assert [same_bits(g, w) for g, w in zip(got, want, strict=True)] == [True] * len(want)


def gradients(program: Program, values: list[torch.Tensor]) -> list[torch.Tensor | None]:
    leaves = [
        v.clone().requires_grad_() if v.is_floating_point() and port.role is not Role.BUFFER else v
        for v, port in zip(values, program.graph.inputs, strict=True)
    ]
    outputs = [t for t in interpret(program.graph, leaves, program.constants) if t.requires_grad]
    wanted = [v for v in leaves if v.requires_grad]
    if not outputs or not wanted:
        return []
    weights = [torch.linspace(-1, 2, t.numel(), dtype=t.dtype).reshape(t.shape) for t in outputs]
    return list(torch.autograd.grad(outputs, wanted, weights, allow_unused=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_rules_rest_on(dtype: torch.dtype) -> None:
    """torch's own arithmetic is what the rules say, for many magnitudes and at the ends of the scale."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(-44, 38, 4099, dtype=torch.float64)
    wide = torch.randn(4099, generator=generator, dtype=torch.float64) * scale
    x = torch.cat([wide, torch.tensor(ODD, dtype=torch.float64)]).to(dtype)
    y = torch.randn(len(x), generator=generator, dtype=torch.float64).to(dtype)
    assert same_bits(x.pow(2), x * x)
    assert same_bits(x.square(), x * x)
    assert same_bits(x.pow(1.0), x)
    for power in (-14, -1, 1, 14):
        assert same_bits(x / 2.0**power, x * 2.0**-power)
        assert same_bits(x / -(2.0**power), x * -(2.0**-power))
    assert same_bits(x + -y, x - y)
    assert same_bits(x - -y, x + y)
    assert same_bits(-x * -y, x * y)
    assert same_bits(x * -1, -x)
    assert same_bits(torch.rsub(x, y), y - x)
    if dtype in (torch.float32, torch.float64):
        assert same_bits(x * torch.full_like(x, 0.1), x * 0.1)


def test_why_there_is_no_rule_for_updates_by_hand() -> None:
    """add(alpha) rounds once, mul and sub twice, where the machine has a fused multiply-add."""
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(1000, generator=generator) for _ in range(2))
    torch.testing.assert_close(torch.add(x, g, alpha=-0.1), x - 0.1 * g)
    # A multiplication by a power of two does not round, and yet loses bits of the smallest numbers.
    least = torch.tensor([3 * 2.0**-149])
    assert (least * 0.5).double().item() != least.double().item() * 0.5


def test_every_rule_and_fusion_says_why_it_is_exact_and_is_shown() -> None:
    shown = "\n".join(path.read_text(encoding="utf-8") for path in FILES)
    for rule in (*RULES, *FUSIONS, *GROUPS):
        assert len(rule.why) > 10
        assert rule.name in shown


def test_integers_that_are_too_large_for_a_dtype_are_left() -> None:
    """The dtypes that casts go through hold every element: the largest come back."""
    for narrow, wide in ((DType.F16, DType.F32), (DType.BF16, DType.F32), (DType.I32, DType.I64)):
        info = torch.finfo(narrow.torch) if narrow.is_floating else torch.iinfo(narrow.torch)
        top = torch.tensor([info.max, info.min], dtype=narrow.torch)
        assert torch.equal(top.to(wide.torch).to(narrow.torch), top)


def test_optional_passes_are_asked_for_by_name() -> None:
    assert not {step.name for step in OPTIONAL} & {step.name for step in PASSES}
    program = program_of(FOLDER / "group" / "linear.plan")
    assert any(node.op == "aten.relu" for node in run_pipeline(program).program.graph.nodes)
    done = run_pipeline(program, named(["group", "dce"]))
    assert not any(node.op == "aten.relu" for node in done.program.graph.nodes)
    assert Simplify().apply(program).program is program
