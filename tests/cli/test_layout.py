"""`planc fmt`: tokens and comments stay, layout is canonical, and printed plans are left as they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given

from planc.errors import ParseError
from planc.ir import Graph
from planc.text import format as layout
from planc.text import show
from planc.text.parser import parse_syntax
from tests.cli.conftest import Call
from tests.cli.golden import check
from tests.strategies import CONSTANTS, graphs

TEXTS = Path(__file__).parents[1] / "text" / "print"
SOURCES = sorted(TEXTS.glob("*.plan"))


def tokens(text: str) -> list[str]:
    """Everything but space, and but the commas that end a list of ports."""
    pieces = re.findall(r'#[^\n]*|"(?:[^"\\]|\\.)*"|`(?:[^`\\]|\\.)*`|[^\s]', text)
    out: list[str] = []
    for piece in (piece.rstrip() for piece in pieces):
        if piece in (")", "]") and out and out[-1] == ",":
            out.pop()
        out.append(piece)
    return out


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_texts_of_people(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    laid_out = layout(text, path.name)
    assert tokens(laid_out) == tokens(text)
    assert layout(laid_out, path.name) == laid_out


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_printed_plans_are_in_layout(path: Path) -> None:
    printed = path.with_suffix(".txt").read_text(encoding="utf-8")
    assert layout(printed, path.name) == printed


@given(graphs())
def test_every_printed_plan_is_in_layout(graph: Graph) -> None:
    printed = show(graph, CONSTANTS)
    assert layout(printed, "a.plan") == printed


UGLY = """\
#first


#second
plan   step( param w:f32[4,2] "fc.w" ,x : f32[ b,4 ],)->f32[b ,2]{   # opens
const k:f32[ 2 ]=[1.0,-2.0 ]



  # of y
  y,_=some(x@w,dim=[-1 , 0],keep = true)  # trailing
  z = -y*2+k ** 2 - -1.0 # minus
  plan inner(a:f32[2]) where n,m in 1 .. -4 {return a}
  long = cat([y,
 z,  # the second
      # alone
      y
      ], dim=0)
      gives ( r, {"a":[_ ,1]} )
  return long #end

  # after
}
#last
"""


def test_an_ugly_text() -> None:
    check("ugly.plan", layout(UGLY, "ugly.plan"))
    assert layout(layout(UGLY, "a"), "a") == layout(UGLY, "a")
    assert tokens(layout(UGLY, "a")) == tokens(UGLY)
    assert len(parse_syntax(layout(UGLY, "a"))) == 1


LOOP = """\
plan total(w: f32[4], x: f32[n, 4]) -> f32[4] {
for rows in batches(x,size = 2) {   # each
w = w+sum(rows , dim=[0])
# kept
collect w }
return w
}
"""


def test_loops_are_indented() -> None:
    check("loop.plan", layout(LOOP, "loop.plan"))


@pytest.mark.parametrize("width", range(60, 135, 7))
def test_headers_are_broken_where_they_are_long(width: int) -> None:
    name = "p" * (width - 40)
    text = f"plan {name}(x: f32[2], y: f32[2]) -> (r: f32[2]) where b in 1..2 {{\n  return x\n}}\n"
    laid_out = layout(text, "a.plan")
    assert tokens(laid_out) == tokens(text)
    assert max(map(len, laid_out.splitlines())) <= 100
    assert layout(laid_out, "a.plan") == laid_out


@pytest.mark.parametrize("text", ["", "# only this\n", "plan p() { return }\n"])
def test_small_texts(text: str) -> None:
    assert tokens(layout(text, "a.plan")) == tokens(text)


def test_a_wrong_text_is_an_error() -> None:
    with pytest.raises(ParseError, match=r"a\.plan:2:3: error: "):
        layout("plan p(x: f32[2]) {\n  = x\n}\n", "a.plan")


def test_the_command_rewrites_files(call: Call, folder: Path) -> None:
    before = (folder / "predict.plan").read_text()
    assert call("fmt", "--check", "predict.plan", code=1).stdout == "predict.plan: not in canonical layout\n"
    assert (folder / "predict.plan").read_text() == before
    assert call("fmt", "predict.plan").stdout == "predict.plan: laid out anew\n"
    check("predict.plan", (folder / "predict.plan").read_text())
    assert call("fmt", "predict.plan").stdout == "1 file in canonical layout\n"
    assert call("fmt", "--check", "predict.plan").stdout == "1 file in canonical layout\n"


def test_the_command_changes_nothing_if_one_file_is_wrong(call: Call, folder: Path) -> None:
    before = (folder / "predict.plan").read_text()
    (folder / "wrong.plan").write_text("plan p(")
    assert "wrong.plan:1:7: error: " in call("fmt", "predict.plan", "wrong.plan", code=3).stderr
    assert (folder / "predict.plan").read_text() == before
