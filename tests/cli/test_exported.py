"""Programs that torch.export saved, on the command line: compiled, shown, costed; and files that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import planc
from tests.cli.conftest import Call


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear layer with a varying batch, as torch.export saved it."""
    file = tmp_path_factory.mktemp("exported") / "layer.pt2"
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(nn.Linear(3, 2), (torch.randn(5, 3),), dynamic_shapes={"input": {0: batch}})
    torch.export.save(program, file)
    return file


@pytest.fixture
def layer(saved: Path, folder: Path) -> str:
    (folder / "layer.pt2").write_bytes(saved.read_bytes())
    return "layer.pt2"


def test_an_exported_program_is_a_plan_to_every_command(call: Call, layer: str, folder: Path) -> None:
    assert "plan layer(" in call("show", layer).stdout
    assert "b in 2..64" in call("show", layer).stdout
    assert "layer.pt2: plan layer is valid" in call("check", layer).stdout
    # addmm of [4, 3] and [3, 2]: 2*4*3*2, and 4*2 for the bias.
    assert '"flops": 56' in call("cost", layer, "--batch", "4", "--json").stdout
    assert "wrote layer.planc: artifact" in call("compile", layer).stdout
    plan = planc.load(folder / "layer.planc")
    assert sorted(plan.state) == ["bias", "weight"]
    assert plan(torch.ones(4, 3)).shape == (4, 2)


def test_what_is_no_exported_program(call: Call, folder: Path) -> None:
    (folder / "text.pt2").write_text("plan f(x: f32[b]) { return x }", encoding="utf-8")
    assert "text.pt2 is no program that torch.export.save wrote" in call("show", "text.pt2", code=5).stderr
    torch.save({"weight": torch.ones(2)}, folder / "weights.pt2")
    assert "weights.pt2 is no program that torch" in call("compile", "weights.pt2", code=5).stderr
    assert "none.pt2: No such file" in call("check", "none.pt2", code=8).stderr


def test_a_truncated_program(call: Call, layer: str, folder: Path) -> None:
    data = (folder / layer).read_bytes()
    for length in (0, 1, len(data) // 2, len(data) - 1):
        (folder / "bad.pt2").write_bytes(data[:length])
        assert "bad.pt2 is no program that torch.export.save wrote" in call("show", "bad.pt2", code=5).stderr


def test_help_says_that_reading_may_run_code(call: Call) -> None:
    shown = " ".join(call("compile", "--help").stdout.split())
    assert "FILE.pt2" in shown
    assert "name only what you trust" in shown.replace("│ ", "").replace(" │", "")
