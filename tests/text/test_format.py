"""The formatter: layout changes, and nothing else does."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planc.errors import ParseError, SourceError
from planc.ir import Graph
from planc.text import format, parse, show
from planc.text.parser import parse_syntax
from planc.text.syntax import Problem
from tests.strategies import graphs
from tests.text.exact import exact

HERE = Path(__file__).parent
SOURCES = sorted(HERE.glob("*/*.plan"))
PRINTED = sorted((HERE / "print").glob("*.txt"))


def words(text: str) -> list[str]:
    """A text's tokens; commas before a closing bracket come and go."""
    return re.findall(r"#.*|\"[^\"]*\"|\w+|[^\s\w]", re.sub(r",(\s*)\)", r"\1)", text))


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_formatting_keeps_all_but_layout(path: Path) -> None:
    source = read(path)
    try:
        parse_syntax(source)
    except Problem:
        with pytest.raises(ParseError):
            format(source)
        return
    formatted = format(source)
    assert words(formatted) == words(source)
    assert format(formatted) == formatted
    assert answer(formatted) == answer(source)


def answer(source: str) -> list[str] | str:
    """The plans that a text means, or its error without the place."""
    try:
        return [exact(graph) for graph in parse(source).plans.values()]
    except SourceError as error:
        return error.message


@pytest.mark.parametrize("path", PRINTED, ids=lambda path: path.stem)
def test_a_printed_plan_is_in_canonical_layout(path: Path) -> None:
    assert format(read(path)) == read(path)


@given(graphs())
@settings(max_examples=20)
def test_any_printed_plan_is_in_canonical_layout(graph: Graph) -> None:
    assert format(show(graph)) == show(graph)


MESSY = """
# a file

  # of plans


plan   double( x:f32[ n ] ){# twice
return x*2}   # done
plan f(x: f32[b,3], # rows
  param w: f32[3]
  "fc.w")->(r:f32[b] ,param w)  where b in 1 .. 64{
    # first

    h = x@w ;;
    for i in range( 3 ){w=w*2
    # in the loop
    collect   n=sum( w )}
  h = relu ( # why not
      -h
      )   # trailing
  return where (h>0,h,- h),w # end
  # really
}
""".replace(" ;;", "")

TIDY = """\
# a file

# of plans

plan double(x: f32[n]) {  # twice
  return x*2
}  # done
plan f(x: f32[b, 3],  # rows
    param w: f32[3]
    "fc.w") -> (r: f32[b], param w) where b in 1..64 {
  # first

  h = x @ w
  for i in range(3) {
    w = w*2
    # in the loop
    collect n = sum(w)
  }
  h = relu(  # why not
      -h
  )  # trailing
  return where(h > 0, h, -h), w  # end
  # really
}
"""


def test_a_messy_text_becomes_tidy() -> None:
    assert format(MESSY) == TIDY
    assert format(TIDY) == TIDY


COMMENTS = st.sampled_from(["", "", "", " ", "\n", "# c\n", "\n\n# (\n", "  # } x\n\n\n"])


@given(st.data())
@settings(max_examples=150)
def test_comments_anywhere_stay_where_they_are(data: st.DataObject) -> None:
    pieces = re.findall(r"\s+|#.*|\"[^\"]*\"|\w+|->|\.\.|\*\*|//|==|<=|[^\s\w]", TIDY)
    spaced = [piece + (data.draw(COMMENTS) if piece.isspace() else "") for piece in pieces]
    source = "".join(spaced)
    formatted = format(source)
    assert words(formatted) == words(source)
    assert format(formatted) == formatted
