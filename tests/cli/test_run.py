"""`planc run`: tensors from files in, results to the screen and to files out."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import planc
from tests.cli.conftest import Call

STEP = """\
plan step(x: f32[b, 2], param w: f32[2] "fc.w", key rng: i64[])
    -> (r: f32[b], s: f32[], param w: f32[2] "fc.w", key rng: i64[]) {
  y = x @ w
  k, next = random.split(rng, count=2)
  return y, sum(y), w * 2.0, next
}
"""
X = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
W = torch.tensor([1.0, 10.0])


@pytest.fixture
def files(folder: Path) -> Path:
    (folder / "step.plan").write_text(STEP)
    np.save(folder / "x.npy", X.numpy())
    np.savez(folder / "both.npz", **{"x": X.numpy(), "fc.w": W.numpy()})
    safetensors.torch.save_file({"x": X, "fc.w": W}, folder / "both.safetensors")
    return folder


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_inputs_and_results(call: Call, files: Path, kind: str) -> None:
    inputs = ["-i", f"x=both.{kind}", "-i", f"fc.w=both.{kind}", "--seed", "1"]
    output = call("run", "step.plan", *inputs, "--output", f"out.{kind}").stdout
    assert output == (
        "r: f32[3]\n  [21.0, 43.0, 65.0]\ns: f32[] = 129.0\n"
        f"wrote out.{kind}: 2 tensors\n2 state tensors replaced, and not kept (--save FILE keeps them)\n"
    )
    if kind == "npz":
        with np.load(files / "out.npz") as saved:
            assert {name: saved[name].tolist() for name in saved.files} == {"r": [21, 43, 65], "s": 129}
    else:
        found = safetensors.torch.load_file(files / "out.safetensors")
        assert found["r"].tolist() == [21, 43, 65]


def test_state_goes_on_where_it_was_saved(call: Call, files: Path) -> None:
    first = ["-i", "x=x.npy", "-i", "w=both.npz", "--seed", "1", "--save", "next.planc"]
    assert "wrote next.planc: the plan with its new state" in call("run", "step.plan", *first).stdout
    saved = planc.load("next.planc")
    assert torch.equal(saved.state["fc.w"], 2 * W)
    assert not torch.equal(saved.state["rng"], planc.key(1))
    assert "s: f32[] = 258.0" in call("run", "next.planc", "-i", "x=x.npy").stdout


def test_one_tensor_to_npy(call: Call, files: Path) -> None:
    (files / "double.plan").write_text("plan double(x: f32[b, 2]) { return x + x }")
    call("run", "double.plan", "-i", "x=x.npy", "--output", "out.npy")
    assert np.array_equal(np.load(files / "out.npy"), 2 * X.numpy())


def test_arranged_arguments_and_large_results(call: Call, files: Path) -> None:
    source = """\
plan pair(a: f32[b, 2], c: f32[b, 2]) -> (r: f32[b, 2], s: i64[b, 2]) {
  takes ({"one": a, "other": (c,)}, 3)
  gives [r, {"s": s}]
  return a + c, aten.to(c, dtype=i64)
}
"""
    (files / "pair.plan").write_text(source)
    np.save(files / "big.npy", np.ones((40, 2), np.float32))
    output = call("run", "pair.plan", "-i", "a=big.npy", "-i", "c=big.npy").stdout
    assert output == "r: f32[40, 2], min 2, mean 2, max 2\ns: i64[40, 2]\n"


def test_other_byte_orders(call: Call, files: Path) -> None:
    (files / "double.plan").write_text("plan double(x: f32[b]) { return x + x }")
    np.save(files / "big_endian.npy", np.array([1, 2], ">f4"))
    assert "[2.0, 4.0]" in call("run", "double.plan", "-i", "x=big_endian.npy").stdout


STATE = ["-i", "w=both.npz", "--seed", "1"]


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ([], 6, "needs --input for x: f32[b, 2]"),
        (
            ["-i", "x=x.npy"],
            6,
            "without its state 'fc.w' (f32[2]) and 1 more: give it with --input fc.w=FILE",
        ),
        (["-i", "x=x.npy", "-i", "w=both.npz"], 6, "without its state 'rng' (i64[]): give it with --seed N"),
        (["-i", "x", *STATE], 2, "expected NAME=FILE, got 'x'"),
        (["-i", "x=x.npy", "-i", "x=x.npy"], 2, "input 'x' is given twice"),
        (["-i", "x=x.npy", "-i", "fc.w=x.npy", "-i", "w=x.npy"], 2, "input 'w' is given twice"),
        (["-i", "y=x.npy"], 6, "has no input 'y'; its inputs: 'x', 'fc.w', 'rng'"),
        (["-i", "x=missing.npy", *STATE], 8, "missing.npy: No such file or directory"),
        (["-i", "x=x.txt", *STATE], 8, "x.txt: expected a file of kind .safetensors, .npy, .npz"),
        (["-i", "x=others.npz", *STATE], 8, "expected a tensor called 'x', got 2 tensors: 'a', 'c'"),
        (["-i", "x=f64.npy", *STATE], 6, "the dtype is f64, not f32"),
        (["-i", "x=wide.npy", *STATE], 6, "dimension 1 is 3, not 2"),
        (["-i", "x=objects.npy", *STATE], 8, "Object arrays cannot be loaded"),
        (["-i", "x=text.npy", *STATE], 8, "cannot be read as .npy"),
        (["-i", "x=bad.npy", *STATE], 8, "cannot be read as .npy"),
        (["-i", "x=bad.npz", *STATE], 8, "cannot be read as .npz: File is not a zip file"),
        (["-i", "x=bad.safetensors", *STATE], 8, "cannot be read as .safetensors"),
        (["-i", "x=x.npy", "--output", "out.txt"], 8, "out.txt: expected a file of kind"),
        (["-i", "x=x.npy", *STATE, "--output", "out.npy"], 8, "holds one tensor, got 2; write .npz"),
    ],
)
def test_errors(call: Call, files: Path, args: list[str], code: int, message: str) -> None:
    np.savez(files / "others.npz", a=X, c=X)
    np.save(files / "f64.npy", X.double().numpy())
    np.save(files / "wide.npy", np.ones((2, 3), np.float32))
    np.save(files / "objects.npy", np.array([object()]), allow_pickle=True)
    np.save(files / "text.npy", np.array(["a"]))
    for kind in ("npy", "npz", "safetensors"):
        (files / f"bad.{kind}").write_bytes(b"these are no tensors")
    assert message in call("run", "step.plan", *args, code=code).stderr


def test_a_plan_without_keys_takes_no_seed(call: Call, files: Path) -> None:
    args = ["run", "predict.plan", "-i", "x=x.npy", "--seed", "1"]
    assert "takes no --seed" in call(*args, code=6).stderr


def test_a_failing_operation(call: Call, files: Path) -> None:
    (files / "pick.plan").write_text(
        "plan pick(x: f32[b, 2], i: i64[2]) { return index_select(x, i, dim=0) }"
    )
    np.save(files / "i.npy", np.array([0, 9]))
    error = call("run", "pick.plan", "-i", "x=x.npy", "-i", "i=i.npy", code=9).stderr
    assert "aten.index_select failed (pick.plan:1:" in error


def test_names_in_a_zip_are_data(call: Call, files: Path) -> None:
    """Entries are read by name, never written anywhere, whatever they are called."""
    with zipfile.ZipFile(files / "odd.npz", "w") as archive:
        archive.write(files / "x.npy", "../../x.npy")
    assert "r: f32[3]" in call("run", "step.plan", "-i", "x=odd.npz", *STATE).stdout


def test_a_profile_tells_of_every_node_that_runs(call: Call, files: Path) -> None:
    given = ["-i", "x=x.npy", "-i", "w=both.npz", "--seed", "1", "--profile"]
    output = call("run", "step.plan", *given).stdout
    assert "r: f32[3]\n  [21.0, 43.0, 65.0]\n" in output
    shown = [line.split() for line in output.splitlines()]
    nodes = [line[1] for line in shown if line and line[0].isdigit() and line[-1] == "%"]
    assert sorted(nodes) == ["mul", "mv", "random.split", "sum"]
    assert [line[0] for line in shown if line[-2:] == ["100", "%"]] == ["total", "total"]


def test_a_profile_for_machines(call: Call, files: Path) -> None:
    given = ["-i", "x=x.npy", "-i", "w=both.npz", "--seed", "1", "--profile", "--json"]
    found = json.loads(call("run", "step.plan", *given).stdout)
    assert found["results"][1] == {"path": "s", "type": "f32[]", "values": 129.0}
    profile = found["profile"]
    times = [node["seconds"] for node in profile["nodes"]]
    assert times == sorted(times, reverse=True)
    assert all(seconds > 0 for seconds in times)
    assert sum(times) == pytest.approx(profile["seconds"])
    assert sum(op["share"] for op in profile["ops"]) == pytest.approx(1)
    assert {(node["op"], node["runs"]) for node in profile["nodes"]} == {
        (op["op"], 1) for op in profile["ops"]
    }
    assert "profile" not in json.loads(call("run", "step.plan", *given[:-2], "--json").stdout)
    assert "replaced, and not kept" in call("run", "step.plan", *given).stderr
