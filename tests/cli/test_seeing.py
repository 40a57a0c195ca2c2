"""Drawings, pages and differences, as the command line gives them."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

import planc
from tests.cli.conftest import PREDICT, Call
from tests.cli.golden import check

LEAKY = """\
plan predict(x: f32[b, 784], y: i64[b], param w: f32[10, 784] "fc.weight",
             param c: f32[10] "fc.bias") -> (r: f32[b, 10], seen: f32[b, 784]) where b in 1..2048 {
  return softmax(relu(x @ t(w) + c), dim=-1), x * 2
}
"""


@pytest.fixture
def leaky(folder: Path) -> str:
    (folder / "leaky.plan").write_text(LEAKY)
    return "leaky.plan"


@pytest.mark.parametrize("command", ["show", "compile"])
def test_svg(call: Call, command: str) -> None:
    drawn = call(command, "predict.plan", "--emit", "svg", "--private", "x").stdout
    shown = [element.text for element in ElementTree.fromstring(drawn).iter() if element.tag.endswith("text")]
    assert {"plan predict", "fc.weight", "private", "from private data", "softmax"} <= set(shown)


def test_html_to_a_file(call: Call, folder: Path) -> None:
    line = call("show", "predict.plan", "--emit", "html", "-o", "p.html", "--batch", "3").stdout
    made = (folder / "p.html").read_text()
    assert line == "wrote p.html: html\n"
    assert made.startswith("<!DOCTYPE html>")
    assert planc.parse(PREDICT).id in made
    assert "One run at b=3" in made
    assert "assumed" not in made


def test_compile_writes_drawings_and_says_so(call: Call, folder: Path) -> None:
    output = call("compile", "predict.plan", "--emit", "svg", "-o", "p.svg").stdout
    assert "wrote p.svg: svg" in output
    assert (folder / "p.svg").read_text().startswith("<svg ")


def test_dot_marks_private_inputs(call: Call) -> None:
    assert call("show", "predict.plan", "--emit", "dot", "--private", "x").stdout.count("penwidth") == 2


def test_a_private_input_must_exist(call: Call) -> None:
    error = call("show", "predict.plan", "--emit", "svg", "--private", "z", code=6).stderr
    assert error == "error: plan 'predict' has no input 'z'; it has x, fc.weight, fc.bias\n"


def test_the_same_plan(call: Call, folder: Path) -> None:
    (folder / "same.plan").write_text(planc.parse(PREDICT).text)
    output = call("diff", "predict.plan", "same.plan").stdout
    assert output.splitlines()[-1] == "the same plan"
    assert json.loads(call("diff", "predict.plan", "same.plan", "--json").stdout)["same"] is True


def test_what_changed(call: Call, leaky: str) -> None:
    output = call("diff", "predict.plan", leaky, code=1).stdout
    assert max(len(line) for line in output.splitlines()) <= 80
    check("diff_leaky.txt", output)


def test_what_changed_for_machines(call: Call, leaky: str) -> None:
    found = json.loads(call("diff", "predict.plan", leaky, "--json", "--dim", "b=5", code=1).stdout)
    assert found["same"] is False
    assert found["leaves"] == ["result seen: f32[b, 784] is new, computed from x"]
    assert {"part": "input", "kind": "added", "in": "", "before": None, "after": "y: i64[b]"} in found[
        "changes"
    ]
    assert found["before"]["id"] == planc.parse(PREDICT).id
    assert found["after"]["cost"]["dims"] == {"b": 5}


def test_a_dim_of_one_side_alone(call: Call, folder: Path) -> None:
    (folder / "fixed.plan").write_text("plan predict(x: f32[3, 784]) { return x }")
    assert "(at b=7 and no dims)" in call("diff", "predict.plan", "fixed.plan", "--dim", "b=7", code=1).stdout
    assert "no dim n" in call("diff", "predict.plan", "fixed.plan", "--dim", "n=7", code=6).stderr


def test_cost_of_a_long_plan_is_told_by_op_too(call: Call, folder: Path) -> None:
    steps = "".join(f"v{i + 1} = relu(v{i}) * x\n" for i in range(30))
    (folder / "long.plan").write_text(f"plan long(x: f32[n]) {{ v0 = x * 2\n{steps} return v30 }}")
    output = call("cost", "long.plan", "--dim", "n=1000").stdout
    assert max(len(line) for line in output.splitlines()) <= 80
    rows = [line.split() for line in output.splitlines()]
    assert ["mul", "31", "31", "31.0", "k", "359", "KiB"] in rows
    assert ["relu", "30", "30", "30.0", "k", "234", "KiB"] in rows
