"""`planc compile`, `show`, `check` and `cost`: what they print and what they write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import planc
from tests.cli.conftest import Call
from tests.cli.golden import check

WASTE = """\
plan waste(x: f32[b, 4], param w: f32[4, 4]) -> f32[b, 4] {
  a = x @ w
  again = x @ w
  unused = exp(x)
  return a + again
}
"""
MANY = """\
plan many({inputs}) -> ({outputs}) {{
  return {values}
}}
"""
NETS = """\
import planc

@planc.plan
def unbuilt(x):
    return x

parsed = planc.parse("plan double(x: f32[b]) -> f32[b] { return x + x }")
number = 3

class Inner:
    plan = parsed
"""


def many_states() -> str:
    ports = [f"{'param' if i < 4 else 'optim'} s{i}: f32[3]" for i in range(13)]
    return MANY.format(
        inputs=", ".join(["x: f32[]", *ports]),
        outputs=", ".join(["r: f32[]", *ports[:2]]),
        values="x, s0, s1",
    )


def test_the_summary_of_a_text(call: Call, folder: Path) -> None:
    result = call("compile", "predict.plan")
    check("compile_predict.txt", result.stdout)
    assert result.stderr == ""
    assert planc.load("predict.planc").id in result.stdout
    assert f"{(folder / 'predict.planc').stat().st_size:,} bytes" in result.stdout


def test_passes_show_nodes_before_and_after(call: Call, folder: Path) -> None:
    (folder / "waste.plan").write_text(WASTE)
    check("compile_waste.txt", call("compile", "waste.plan", "--batch", "8").stdout)
    assert len(planc.load("waste.planc").nodes) == 2


LAYERS = """\
plan layers(x: f32[b, 4], param w: f32[4, 4], param c: f32[4]) -> f32[b, 4] {
  h = relu(addmm(c, x, t(w)))
  return addmm(c, h, w) - h * 0.1
}
"""


def test_explain_says_what_was_not_done_and_why(call: Call, folder: Path) -> None:
    (folder / "layers.plan").write_text(LAYERS)
    check("compile_explain.txt", call("compile", "layers.plan", "--batch", "8", "--explain").stdout)
    assert "not done" not in call("compile", "layers.plan").stdout
    found = json.loads(call("compile", "layers.plan", "--json").stdout)
    (fuse,) = (record for record in found["passes"] if record["name"] == "fuse")
    assert [reason.split(":")[0] for reason in fuse["missed"]] == [
        "linear at aten.addmm (layers.plan",
        "scaled update at aten.sub (layers.plan",
    ]
    result = call("compile", "layers.plan", "--emit", "text", "--explain")
    assert planc.parse(result.stdout).text == result.stdout
    assert "linear at aten.addmm" in result.stderr
    assert "not done\n  nothing that was near\n" in call("compile", "predict.plan", "--explain").stdout


def test_passes_are_chosen_by_name(call: Call, folder: Path) -> None:
    (folder / "layers.plan").write_text(LAYERS)

    def ops(passes: str) -> list[str]:
        text = call("compile", "layers.plan", "--emit", "text", "--passes", passes).stdout
        return [node.op for node in planc.parse(text).nodes]

    given = [node.op for node in planc.parse(LAYERS).nodes]
    assert ops("") == ops("dce") == given
    assert ops("fuse, dce") == ["fused.linear", "aten.relu", *given[3:]]
    assert ops("fuse,group,dce") == ["fused.linear_act", *given[3:]]
    assert "there is no pass 'inline'" in call("compile", "layers.plan", "--passes", "inline", code=2).stderr


def test_the_plan_is_printed_after_a_pass(call: Call, folder: Path) -> None:
    (folder / "waste.plan").write_text(WASTE)
    result = call("compile", "waste.plan", "--emit", "text", "--print-after", "cse")
    check("print_after.txt", result.stderr)
    assert result.stdout == call("compile", "waste.plan", "--emit", "text").stdout
    wrong = call("compile", "waste.plan", "--passes", "cse,dce", "--print-after", "fold", code=2).stderr
    assert "the pass 'fold' does not run; there are cse, dce" in " ".join(wrong.replace("│", " ").split())


def test_long_state_is_counted(call: Call, folder: Path) -> None:
    (folder / "many.plan").write_text(many_states())
    output = call("compile", "many.plan").stdout
    assert "state: 13 tensors, 156 B, 13 without a value\n  4 parameters, 9 optimizer states\n" in output
    assert "s7" not in output


def test_summaries_fit_80_columns(call: Call, folder: Path) -> None:
    (folder / "waste.plan").write_text(WASTE)
    for source in ("predict.plan", "waste.plan"):
        for command in ("compile", "cost"):
            assert max(map(len, call(command, source).stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    ("options", "dims", "assumed"),
    [
        ([], {"b": 64}, ["b"]),
        (["--batch", "3"], {"b": 3}, []),
        (["--dim", "b=7"], {"b": 7}, []),
    ],
)
def test_sizes_come_from_options_or_are_assumed(
    call: Call, options: list[str], dims: dict[str, int], assumed: list[str]
) -> None:
    cost = json.loads(call("compile", "predict.plan", "--json", *options).stdout)["cost"]
    assert (cost["dims"], cost["assumed_dims"]) == (dims, assumed)
    assert cost["flops"] == planc.load("predict.planc").cost(**dims).flops


def test_an_assumed_size_is_within_its_range(call: Call, folder: Path) -> None:
    (folder / "s.plan").write_text("plan s(x: f32[b, n]) where b in 2..5, n in 100..200 { return x }")
    assert json.loads(call("cost", "s.plan", "--json").stdout)["dims"] == {"b": 5, "n": 100}


def test_json_says_what_the_plan_is(call: Call, folder: Path) -> None:
    found = json.loads(call("compile", "predict.plan", "--json", "-o", "out.planc").stdout)
    plan = planc.load("out.planc")
    assert (found["plan"], found["id"], found["nodes"]) == ("predict", plan.id, len(plan.nodes))
    assert found["dims"] == [{"name": "b", "min": 1, "max": 1024, "equals": None}]
    assert found["inputs"] == [{"name": "x", "path": "x", "role": "arg", "type": "f32[b, 784]"}]
    assert [port["path"] for port in found["state"]] == ["fc.weight", "fc.bias"]
    size = (folder / "out.planc").stat().st_size
    assert found["file"] == {"path": "out.planc", "kind": "artifact", "bytes": size}
    assert [record["name"] for record in found["passes"]] == list(
        dict.fromkeys(record.name for record in plan.optimized().records)
    )


def test_text_goes_to_standard_output_and_reads_back(call: Call, folder: Path) -> None:
    text = call("compile", "predict.plan", "--emit", "text").stdout
    assert text == planc.parse(text).text
    assert [path.name for path in folder.iterdir()] == ["predict.plan"]


def test_text_to_a_file(call: Call, folder: Path) -> None:
    output = call("compile", "predict.plan", "--emit", "text", "-o", "out.plan").stdout
    given = planc.parse((folder / "predict.plan").read_text())
    assert (folder / "out.plan").read_text() == planc.optimize(given).text
    assert "wrote out.plan: text" in output


def test_dot(call: Call, folder: Path) -> None:
    source = """\
plan total(w: f32[4], x: f32[n, 4]) -> f32[4] {
  plan step(w: f32[4], x: f32[b, 4]) -> f32[4] { return w + sum(x, dim=[0]) }
  a = scan([w], [x], [], body=step, size=2)
  return a
}
"""
    (folder / "total.plan").write_text(source)
    check("total.dot", call("compile", "total.plan", "--emit", "dot").stdout)


def test_dot_quotes_names(call: Call, folder: Path) -> None:
    (folder / "odd.plan").write_text('plan odd(x: f32[2] "a\\"b\\\\") { return x }')
    assert '"a\\"b\\\\\\nf32[2]"' in call("compile", "odd.plan", "--emit", "dot").stdout


def test_the_default_file_is_named_after_the_plan(call: Call, folder: Path) -> None:
    (folder / "a.plan").write_text("plan first(x: f32[2]) { return x } plan last(x: f32[2]) { return x }")
    assert "wrote last.planc" in call("compile", "a.plan").stdout
    assert sorted(path.name for path in folder.iterdir()) == ["a.plan", "last.planc", "predict.plan"]


def test_an_artifact_does_not_overwrite_itself_unasked(call: Call, folder: Path) -> None:
    call("compile", "predict.plan")
    before = (folder / "predict.planc").read_bytes()
    assert "what is being read" in call("compile", "predict.planc", code=2).stderr
    call("compile", "predict.planc", "-o", "predict.planc")
    assert (folder / "predict.planc").read_bytes() == before


def test_show_prints_the_text_of_both_forms(call: Call) -> None:
    call("compile", "predict.plan", "--passes", "")
    shown = call("show", "predict.planc").stdout
    assert shown == planc.load("predict.planc").text == call("show", "predict.plan").stdout


def test_check(call: Call) -> None:
    call("compile", "predict.plan", "--passes", "")
    line = call("check", "predict.planc").stdout
    plan = planc.load("predict.planc")
    assert line == f"predict.planc: plan predict is valid: 4 nodes, id {plan.id[:12]}\n"
    found = json.loads(call("check", "predict.plan", "--json").stdout)
    assert found == {"source": "predict.plan", "plan": "predict", "id": plan.id, "nodes": 4}


def test_cost(call: Call, folder: Path) -> None:
    (folder / "waste.plan").write_text(WASTE)
    check("cost_waste.txt", call("cost", "waste.plan", "--dim", "b=1000").stdout)
    found = json.loads(call("cost", "waste.plan", "--dim", "b=1000", "--json").stdout)
    assert found["flops"] == sum(row["flops"] for row in found["nodes"] if row["level"] == 0) > 0
    assert found["nodes"][0]["location"] == "waste.plan:2"


@pytest.mark.parametrize("source", ["nets.py:parsed", "nets.py:Inner.plan", "pkg.nets:parsed"])
def test_plans_named_in_python(call: Call, folder: Path, source: str) -> None:
    (folder / "nets.py").write_text(NETS)
    (folder / "pkg").mkdir()
    (folder / "pkg" / "nets.py").write_text(NETS)
    call("compile", source, "-o", "out.planc")
    assert planc.load("out.planc").name == "double"


def test_a_decorated_function(call: Call, folder: Path) -> None:
    source = """
import planc

@planc.plan(args_shape=[(-1,), (-1,)])
def calcu(x, y):
    return (x + y) / 2
"""
    (folder / "calculation.py").write_text(source)
    output = call("compile", "calculation.py:calcu").stdout
    assert "plan calcu, from calculation.py:calcu" in output
    assert [str(port.value.type) for port in planc.load("calcu.planc").inputs] == ["f32[d0]", "f32[d0]"]


def test_a_python_file_may_be_called_as_a_module_in_use(call: Call, folder: Path) -> None:
    (folder / "json.py").write_text(NETS)
    assert "double" in call("check", "json.py:parsed", "--json").stdout


def test_version(call: Call) -> None:
    assert call("--version").stdout == f"planc {planc.__version__}\n"
