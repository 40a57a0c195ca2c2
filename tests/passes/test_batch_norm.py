"""Folding batch norms into convolutions: within the tolerance that the pass states, generated ones too."""

from __future__ import annotations

from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import planc
from planc.ir.program import Program
from planc.passes import PASSES, named, run_pipeline
from planc.text import parse
from runtime.interpreter import interpret
from tests.strategies import inputs_for

GOLDEN = Path(__file__).parent / "golden" / "fold_batchnorm"


def close(got: torch.Tensor, want: torch.Tensor, tolerance: float = 1e-5) -> bool:
    """Within the tolerance, relative to the largest number of what is wanted."""
    return float((got - want).abs().max()) <= tolerance * float(want.abs().max())


def folded(program: Program) -> Program:
    done = run_pipeline(program, named(["fold_batchnorm", *(step.name for step in PASSES)])).program
    assert not any(node.op == "aten.batch_norm_eval" for node in done.graph.nodes)
    return done


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_generated_pairs(data: st.DataObject) -> None:
    groups, transposed = data.draw(st.sampled_from([(1, False), (2, False), (1, True)]))
    bias, scale, shift = (data.draw(st.sampled_from([True, False])) for _ in range(3))
    width = "3" if transposed else "2" if groups == 2 else "4"
    weight = f"f32[4, {width}, 2]" if transposed else f"f32[6, {width}, 2]"
    channels = 3 if transposed else 6
    stride = data.draw(st.integers(1, 2))
    c = f"f32[{channels}]"
    program = parse(f"""\
plan main(x: f32[b, 4, n], w: {weight}, c: {c}, g: {c}, h: {c}, m: {c}, v: {c}) where n in 4..16 {{
  y = convolution(x, w, {"c" if bias else "none"}, stride=[{stride}], padding=[1], dilation=[1],
                  transposed={str(transposed).lower()}, output_padding=[0], groups={groups})
  r, _, _ = batch_norm_eval(y, {"g" if scale else "none"}, {"h" if shift else "none"}, m, v,
                            momentum=0.1, eps=1e-5)
  return r
}}
""").main
    values = inputs_for(program, {"b": data.draw(st.integers(1, 3)), "n": data.draw(st.integers(4, 9))})
    values[-1] = values[-1].abs() + 0.1
    (want,) = interpret(program, values, {})
    (got,) = interpret(folded(Program(program)).graph, values, {})
    assert close(got, want)


def test_a_network_in_evaluation() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=4), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(5),
    )  # fmt: skip
    net(torch.randn(16, 3, 9, 9))  # statistics of its own
    net.eval()
    plan = planc.trace(net, torch.randn(3, 3, 9, 9))
    steps = named([*(step.name for step in PASSES), "fold_batchnorm"])
    shorter = plan.optimized(steps)
    x = torch.randn(4, 3, 9, 9)
    with torch.no_grad():
        want = net(x)
    assert torch.equal(plan(x), want), "without the pass it is exact"
    assert close(shorter(x), want)
    assert "batch_norm" not in shorter.text
    notes = [note for record in shorter.records for note in record.notes]
    assert "batch norms folded into convolutions, within 1e-5 in f32: 2" in notes


def test_what_is_constant_is_folded_for_good() -> None:
    text = (GOLDEN / "constants.plan").read_text(encoding="utf-8").split("# ==")[0]
    module = parse(text)
    done = folded(Program(module.main, module.constants))
    assert [node.op for node in done.graph.nodes] == ["aten.convolution"]
    assert len(done.constants) == 2


def test_training_is_left_alone() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(5))
    x, target = torch.randn(3, 3, 5, 5), torch.randint(0, 5, (3,))
    net(x)
    net.eval()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    step = planc.train_step(net, nn.functional.cross_entropy, optimizer, x, target, optimize=False)
    (fold,) = named(["fold_batchnorm"])
    done = fold.apply(step.program)
    assert not done.modified
    assert any("read" in reason for reason in done.missed)
