"""Golden texts: what plans print as, and what errors look like.

``PLANC_UPDATE_GOLDEN=1 pytest tests/text`` writes the expected files anew; read the difference.
"""

import os
from pathlib import Path

import pytest

from planc.capture import differentiate
from planc.errors import SourceError
from planc.text import parse, show
from tests.text.exact import exact

HERE = Path(__file__).parent
REGENERATE = "PLANC_UPDATE_GOLDEN" in os.environ


def check(expected: Path, actual: str) -> None:
    if REGENERATE:
        expected.write_text(actual, encoding="utf-8")
    assert actual == expected.read_text(encoding="utf-8")


def sources(folder: str) -> list[Path]:
    found = sorted((HERE / folder).glob("*.plan"))
    assert found, f"there are no golden files in {folder}"
    return found


@pytest.mark.parametrize("path", sources("print"), ids=lambda path: path.stem)
def test_prints(path: Path) -> None:
    module = parse(path.read_text(encoding="utf-8"), path.name, differentiate)
    printed = show(module.main, module.constants)
    check(path.with_suffix(".txt"), printed)
    again = parse(printed)
    assert exact(again.main) == exact(module.main)
    assert show(again.main, again.constants) == printed


@pytest.mark.parametrize("path", sources("errors"), ids=lambda path: path.stem)
def test_errors(path: Path) -> None:
    with pytest.raises(SourceError) as error:
        parse(path.read_text(encoding="utf-8"), path.name, differentiate)
    check(path.with_suffix(".txt"), error.value.render() + "\n")


def test_every_expected_file_has_its_source() -> None:
    for folder in ("print", "errors"):
        for expected in (HERE / folder).glob("*.txt"):
            assert expected.with_suffix(".plan").exists(), f"{expected.name} is left over"
