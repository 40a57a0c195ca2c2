"""docs/language.md: every example is what the language does, every error shown is the one that is given."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

from planc.capture import differentiate
from planc.errors import SourceError
from planc.text import format, parse, show
from planc.text.words import RESERVED

PAGE = (Path(__file__).parents[2] / "docs" / "language.md").read_text(encoding="utf-8")
BLOCKS: list[tuple[str, str]] = re.findall(r"^```([a-z-]+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
PLANS = [text for kind, text in BLOCKS if kind == "plan"]


def after(kind: str, then: str) -> list[tuple[str, str]]:
    """Blocks of a kind with what follows them."""
    return [
        (text, shown)
        for (first, text), (second, shown) in pairwise(BLOCKS)
        if (first, second) == (kind, then)
    ]


ERRORS = after("plan-error", "text")
PRINTED = after("plan", "printed")


def test_the_page_has_examples_of_each_kind() -> None:
    kinds = [kind for kind, _ in BLOCKS]
    assert len(PLANS) >= 15
    assert len(ERRORS) == kinds.count("plan-error") == kinds.count("text")
    assert len(PRINTED) == kinds.count("printed") == 2


@pytest.mark.parametrize("text", PLANS, ids=lambda text: text.split("(")[0])
def test_examples_are_plans_in_canonical_layout(text: str) -> None:
    graph = parse(text, "example.plan", differentiate).main
    assert parse(show(graph)).main == graph
    # Headers may be longer than a line here: a page has room for what a file breaks.
    if all(len(line) <= 100 for line in text.splitlines() if line.startswith("plan")):
        assert format(text) == text


@pytest.mark.parametrize(("text", "shown"), ERRORS, ids=range(len(ERRORS)))
def test_errors_are_as_shown(text: str, shown: str) -> None:
    with pytest.raises(SourceError) as error:
        parse(text, "example.plan", differentiate)
    assert error.value.render() + "\n" == shown


def test_the_printed_plan_is_as_shown() -> None:
    for text, shown in PRINTED:
        assert show(parse(text).main) == shown


def test_every_word_of_the_language_is_named() -> None:
    shown = set(re.findall(r"\w+", PAGE))
    assert {word for word in RESERVED if word.islower()} <= shown
