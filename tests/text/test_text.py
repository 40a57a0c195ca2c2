"""The language beyond its golden files: round trips, places, limits, and any text gets an answer."""

import time
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planc.errors import ElaborationError, ParseError, SourceError
from planc.ir import DimVar, DType, Graph, Role, TensorType, sym
from planc.ir.builder import GraphBuilder
from planc.ir.constants import digest
from planc.ir.graph import Location
from planc.ops import node
from planc.text import parse, show
from planc.text.parser import MAX_TEXT, parse_syntax
from planc.text.words import quote_name, quote_string
from planc.verifier import verify
from tests.strategies import graphs
from tests.text.exact import exact

VECTOR = TensorType(DType.F32, (sym("b"),))


def body(text: str) -> str:
    return "plan f(x: f32[b], y: f32[b]) {\n" + text + "\n}"


@given(graphs())
def test_print_then_parse_is_the_same_graph(graph: Graph) -> None:
    text = show(graph)
    assert exact(parse(text).main) == exact(graph)
    assert show(parse(text).main) == text


@given(st.text(max_size=8), st.text(max_size=8), st.text(max_size=20))
def test_any_name_and_path_comes_back(plan: str, port: str, path: str) -> None:
    # Names that are no identifiers are no valid plan, so only the syntax of them is tested.
    names = f"{quote_name(plan)}({quote_name(port)}: f32[] {quote_string(path)})"
    text = f"plan {names} {{ return {quote_name(port)} }}"
    assert text.isascii()
    (definition,) = parse_syntax(text)
    assert (definition.name.text, definition.inputs[0].path) == (plan, path)
    assert definition.inputs[0].name is not None
    assert definition.inputs[0].name.text == port
    assert definition.returned is not None
    (returned,) = definition.returned.values
    assert returned.text == port  # pyright: ignore[reportAttributeAccessIssue] -- it is a Name


@given(st.floats(allow_nan=False) | st.integers(-(2**63), 2**63 - 1) | st.booleans())
def test_any_number_comes_back_with_its_type(number: float) -> None:
    builder = GraphBuilder("f", [DimVar("b")])
    x = builder.input("x", VECTOR)
    (result,) = builder.add(node("aten.mul", (x, number), {}, builder.next_index))
    alpha = 1 if isinstance(number, bool) else number
    (same,) = builder.add(node("aten.add", (result, 1), {"alpha": alpha}, builder.next_index))
    builder.output(same, "r")
    graph = builder.build()
    assert exact(parse(show(graph)).main) == exact(graph)


@given(
    st.sampled_from(list(DType)).flatmap(
        lambda d: st.tuples(st.just(d), st.lists(st.integers(0, 4), max_size=3), st.integers(0, 2**32))
    )
)
def test_data_of_constants_come_back(made: tuple[DType, list[int], int]) -> None:
    dtype, shape, seed = made
    raw = torch.randint(
        0, 256, (*shape, dtype.itemsize), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    tensor = (raw[..., 0] > 127) if dtype is DType.BOOL else raw.view(dtype.torch).reshape(shape)
    builder = GraphBuilder("f")
    builder.output(builder.constant(TensorType(dtype, tuple(shape)), digest(tensor)), "r")
    graph = builder.build()
    module = parse(show(graph, {digest(tensor): tensor}))
    assert exact(module.main) == exact(graph)
    if tensor.numel() <= 16 and not (tensor.is_floating_point() and tensor.isnan().any()) and all(shape):
        assert list(module.constants) == [digest(tensor)], "small data are written out"
    for name, data in module.constants.items():
        assert digest(data) == name


def test_data_with_nans_are_written_as_their_digest() -> None:
    odd = torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32)
    builder = GraphBuilder("f")
    builder.output(builder.constant(TensorType(DType.F32, (1,)), digest(odd)), "r")
    assert f"= sha256:{digest(odd)}" in show(builder.build(), {digest(odd): odd})


def test_modules_list_their_plans_in_order() -> None:
    module = parse(
        "plan a(x: f32[n]) { return x } plan b(x: f32[m]) { return a(x) } plan c(x: f32[]) { return x }"
    )
    assert list(module.plans) == ["a", "b", "c"]
    assert module.main is module.plans["c"]
    assert module.plans["b"].subplans == (module.plans["a"],)


def test_a_plan_that_is_called_twice_is_one_subplan() -> None:
    module = parse("plan a(x: f32[n]) { return x } plan b(x: f32[m]) { return a(a(x)) }")
    assert module.main.subplans == (module.plans["a"],)


def test_an_unwritten_path_is_that_of_the_state() -> None:
    graph = parse('plan f(x: f32[b], param w: f32[b] "fc.weight") -> (param w) { return w * x }').main
    (output,) = graph.outputs
    assert (output.name, output.path, output.role) == ("w", "fc.weight", Role.PARAMETER)


def test_nodes_know_their_line() -> None:
    graph = parse(body("  z = x * y  # product\n  return relu(\n    z)"), "f.plan").main
    assert [n.loc for n in graph.nodes] == [
        Location("f.plan", 2, "z = x * y  # product"),
        Location("f.plan", 3, "return relu("),
    ]


def test_layout_and_comments_mean_nothing() -> None:
    text = show(parse(body("z = x * y\nreturn z + 1, z")).main)
    assert show(parse(text.replace("\n", " ")).main) == text
    assert show(parse(text.replace("\n", "  # (\r\n\t")).main) == text
    assert show(parse(text.replace(" ", "\n")).main) == text


def test_long_sums_are_not_deep() -> None:
    graph = parse(body("return " + " + ".join(["x"] * 5000))).main
    assert len(graph.nodes) == 4999


DEEP: dict[str, str] = {
    "brackets": body("return " + "(" * 50_000 + "x" + ")" * 50_000),
    "lists": body("return aten.cat(" + "[" * 50_000 + "x" + "]" * 50_000 + ")"),
    "calls": body("return " + "relu(" * 50_000 + "x" + ")" * 50_000),
    "minus": body("return " + "-" * 50_000 + "x"),
    "powers": body("return " + "x**" * 50_000 + "x"),
    "plans": "plan f() {" * 50_000,
    "structures": body("takes " + "[" * 50_000 + "]" * 50_000),
    "dicts": body("takes " + '{"a":' * 50_000 + "x" + "}" * 50_000),
    "dims": f"plan f(x: f32[{'(' * 50_000}b{')' * 50_000}]) {{ return x }}",
}


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP)
def test_deep_text_is_an_error(text: str) -> None:
    with pytest.raises(ParseError, match=r"nested more than|is never closed"):
        parse(text)


@pytest.mark.parametrize("nest", [90, 100])
def test_nesting_up_to_the_limit_works(nest: int) -> None:
    assert len(parse(body("return " + "relu(" * nest + "x" + ")" * nest)).main.nodes) == nest


HUGE: dict[str, str] = {
    "text": "#" * (MAX_TEXT + 1),
    "integer": body("return x * " + "9" * 100_000),
    "float": body("return x * 1." + "9" * 100_000),
    "exponent": body("return x * 1e999"),
    "power": body("return x * 9 ** 9 ** 9"),
    "terms": "plan f(x: f32[" + "*".join(["(a+b+c+d+e)"] * 200) + "]) { return x }",
    "degree": "plan f(x: f32[" + "*".join(["a"] * 5000) + "]) { return x }",
    "coefficient": "plan f(x: f32[" + "*".join(["a", *["1000000"] * 50]) + "]) { return x }",
    "shape": "plan f(x: f32[" + ",".join(["a+b+c+d"] * 50) + "]) { return x }",
    "rank": "plan f(x: f32[" + ",".join(["a"] * 5000) + "]) { return x }",
    "name": f"plan {'f' * 100_000}(x: f32[]) {{ return x }}",
    "unknown name": body("return " + "y" * 100_000),
}


@pytest.mark.parametrize("text", HUGE.values(), ids=HUGE)
def test_huge_text_is_an_error_soon(text: str) -> None:
    start = time.perf_counter()
    with pytest.raises(SourceError):
        parse(text)
    assert time.perf_counter() - start < 5


def test_errors_carry_their_place() -> None:
    with pytest.raises(ElaborationError) as error:
        parse(body("z = x +\n  nope"), "a.plan")
    span = error.value.span
    assert (span.file, span.line, span.column, span.end_column) == ("a.plan", 3, 3, 7)
    assert error.value.source.startswith("plan f")


WORDS = """plan f ( x : f32 [ b ] , ) -> { } return = + - * / // % @ ** < == -1 2.5 1e3 "s" "\\u00e9" ` `q`
    none true inf takes gives const where in .. param key relu sum aten.mm call scan [] dim dim=1 sha256: #
    99999999999999999999 é"""
PIECES = st.sampled_from([*WORDS.split(), "\n"])


def answer(text: str) -> None:
    """Parse, and look at the error if there is one; anything but a SourceError fails the test."""
    try:
        graph = parse(text).main
    except SourceError as error:
        rendered = error.render()
    else:
        verify(graph)
        rendered = show(graph)
    assert rendered


@given(st.lists(PIECES, max_size=40).map(" ".join) | st.text(max_size=60))
@settings(max_examples=200)
def test_any_text_is_a_plan_or_a_source_error(text: str) -> None:
    for source in (text, body(text), body("return " + text)):
        answer(source)


@given(graphs(), st.data())
@settings(max_examples=50)
def test_damaged_prints_are_a_plan_or_a_source_error(graph: Graph, data: Any) -> None:
    text = show(graph)
    at = data.draw(st.integers(0, len(text)))
    kept = data.draw(st.integers(at, min(len(text), at + 8)))
    damaged = (
        text[:at]
        + data.draw(st.sampled_from(["", " ", "x", "(", "]", "1", ",", '"', "none", "\x00"]))
        + text[kept:]
    )
    answer(damaged)


def test_time_is_linear_in_length() -> None:
    def seconds(nodes: int) -> float:
        text = "".join(f"v{i + 1}: f32[b] = aten.add(v{i}, y)\n" for i in range(nodes))
        source = "plan f(v0: f32[b], y: f32[b]) {\n" + text + f"return v{nodes}\n}}"
        start = time.perf_counter()
        parse(source)
        return time.perf_counter() - start

    seconds(10)
    # Quadratic time would give 64; the margin is for busy machines.
    assert seconds(4000) < 24 * seconds(500)
