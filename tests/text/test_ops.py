"""Every op of the table, called from text with arguments, mostly wrong: a plan or a SourceError."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planc.errors import SourceError
from planc.ops import OpDef, all_ops
from planc.ops.schema import Kind
from planc.text import parse, show
from tests.text.exact import exact

HEADER = """plan f(x: f32[b, 4], y: f32[b, c], m: f32[4, 3], q: f64[2, b, 4], i: i64[b], s: f32[], k: i64[],
    p: f32[b, 3, c, c]) {
  plan g(a: f32[n, 4]) { return a }
  return """
VALUES = st.sampled_from(["x", "y", "m", "q", "i", "s", "k", "p"])
NUMBERS = st.sampled_from(["1", "0", "-1.5", "true", "b", "inf", "9223372036854775807"])
INTS = st.sampled_from(["0", "1", "2", "-1", "3", "-3", "64", "9223372036854775807", "-9223372036854775808"])
DIMS = INTS | st.sampled_from(["b", "b*2", "(b//2)", "c - b"])
WRONG = st.sampled_from(["none", "true", "1.5", '"mean"', "f32", "[]", "[1, b]"])


def listed(items: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(items, max_size=4).map(lambda parts: f"[{', '.join(parts)}]")


NONE = st.just("none")
ARGUMENTS: dict[str, st.SearchStrategy[str]] = {
    "Tensor": VALUES,
    "Tensors": listed(VALUES),
    "Number": VALUES | NUMBERS,
    "Int": INTS,
    "Float": st.sampled_from(["0.5", "0", "1", "-1.0", "inf", "1e30"]),
    "Bool": st.sampled_from(["true", "false"]),
    "Str": st.sampled_from(['"none"', '"tanh"', '"floor"', '""']),
    "Dim": DIMS,
    "Ints": listed(INTS),
    "Bools": listed(st.sampled_from(["true", "false"])),
    "Dims": listed(DIMS),
    "Scalar": NUMBERS,
    "DType": st.sampled_from(["bool", "u8", "i64", "f16", "bf16", "f32", "f64"]),
    "Subplan": st.just("g"),
}


def argument(kind: Kind) -> st.SearchStrategy[str]:
    if kind is Kind.OPT_TENSORS:
        return listed(VALUES | NONE)
    name = kind.value.removesuffix("Attr")
    exact = ARGUMENTS[name.removeprefix("Opt")]
    return exact | NONE if name.startswith("Opt") else exact


@st.composite
def calls(draw: st.DrawFn, op: OpDef) -> str:
    parts = [draw(argument(p.kind)) for p in op.operands]
    for p in op.attrs:
        if p.required or draw(st.booleans()):
            usual = draw(st.integers(0, 15)) > 0
            parts.append(f"{p.name}={draw(argument(p.kind) if usual else WRONG)}")
    return f"{op.name}({', '.join(parts)})"


@pytest.mark.parametrize("op", all_ops(), ids=lambda op: op.name)
def test_any_call_is_a_plan_or_a_source_error(op: OpDef) -> None:
    @settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow], deadline=None)
    @given(calls(op))
    def check(call: str) -> None:
        try:
            graph = parse(HEADER + call + "\n}").main
        except SourceError as error:
            assert error.render()  # noqa: PT017 -- most calls are wrong, and that is fine
        else:
            assert exact(parse(show(graph)).main) == exact(graph)

    check()
