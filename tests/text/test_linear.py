"""Reading a text takes work that grows with its length: counted in calls of Python functions, not in time."""

import sys
from collections.abc import Callable
from types import FrameType

from planc.text import parse, show
from planc.text.parser import parse_syntax
from tests.codec.samples import large


def calls(run: Callable[[], object]) -> int:
    """How many Python functions ``run`` calls."""
    count = 0

    def note(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(before)
    return count


def check(read: Callable[[str], object]) -> None:
    texts = [show(large(nodes)) for nodes in (100, 200, 400)]
    for text in texts:
        read(text)  # what is cached must not count for one and not for another
    first, second, third = (calls(lambda text=text: read(text)) for text in texts)
    assert (third - second) / (second - first) < 2.1
    assert (third - second) / 200 < 2000


def test_parsing_is_linear() -> None:
    check(parse_syntax)


def test_elaboration_is_linear() -> None:
    check(parse)
