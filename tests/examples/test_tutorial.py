"""docs/tutorial.md is true: its code runs in order and prints what it shows; and the notebook is that page.

``PLANC_UPDATE_GOLDEN=1 pytest tests/examples/test_tutorial.py`` writes outputs and notebook anew.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
DOCS = runpy.run_path(str(ROOT / "docs" / "notebook.py"))
PAGE, NOTEBOOK, Code = DOCS["PAGE"], DOCS["NOTEBOOK"], DOCS["Code"]
REGENERATE = bool(os.environ.get("PLANC_UPDATE_GOLDEN"))
_FLOAT = re.compile(r"-?\d+\.\d*")
_ID = re.compile(r"\b\d{15,}\b")


def numbered(text: str) -> str:
    """Ids replaced by the order in which they come: two that are equal stay equal."""
    seen: dict[str, int] = {}
    return _ID.sub(lambda found: f"N{seen.setdefault(found[0], len(seen))}", text)


def agrees(printed: str, shown: str) -> bool:
    """The same text, but for ids and for the last digits of floats, which differ between machines."""
    ours, theirs = (numbered(text) for text in (printed, shown))
    if _FLOAT.sub("#", ours) != _FLOAT.sub("#", theirs):
        return False
    pairs = zip(_FLOAT.findall(ours), _FLOAT.findall(theirs), strict=True)
    return all(abs(float(a) - float(b)) <= 0.02 * abs(float(b)) + 0.011 for a, b in pairs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("tutorial")
    with contextlib.chdir(path), torch.random.fork_rng():
        yield path


@pytest.fixture(scope="module")
def printed(folder: Path) -> list[tuple[Any, str]]:
    """Each block of the page with what it printed, all in one namespace."""
    namespace: dict[str, Any] = {"__name__": "tutorial"}
    out: list[tuple[Any, str]] = []
    for i, part in enumerate(DOCS["parts"](PAGE.read_text(encoding="utf-8"))):
        if isinstance(part, str):
            continue
        with contextlib.redirect_stdout(io.StringIO()) as stream:
            exec(compile(part.source, f"{PAGE.name}[{i}]", "exec"), namespace)
        out.append((part, stream.getvalue()))
    assert (folder / "mnist.pt").exists()
    return out


def test_every_block_prints_what_the_page_shows(printed: list[tuple[Any, str]]) -> None:
    if REGENERATE:
        done = iter(printed)
        parts = DOCS["parts"](PAGE.read_text(encoding="utf-8"))
        new = [p if isinstance(p, str) else Code(p.source, _kept(p.output, next(done)[1])) for p in parts]
        PAGE.write_text(DOCS["joined"](new), encoding="utf-8")
        NOTEBOOK.write_text(DOCS["notebook"](PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        return
    for part, out in printed:
        assert agrees(out, part.output), f"{part.source}\nprints\n{out}\nthe page shows\n{part.output}"


def _kept(shown: str, now: str) -> str:
    """What the page shows, unless it is no longer so: ids do not change with each regeneration."""
    return shown if agrees(now, shown) else now


def test_the_notebook_is_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert NOTEBOOK.read_text(encoding="utf-8") == DOCS["notebook"](page)
    assert DOCS["joined"](DOCS["parts"](page)) == page


def test_the_cells_of_the_notebook_are_the_code_that_ran(printed: list[tuple[Any, str]]) -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert code == [part.source.strip() for part, _ in printed]
    assert len({cell["id"] for cell in cells}) == len(cells)


@pytest.mark.parametrize(
    ("printed", "shown", "equal"),
    [
        ("{123456789012345678: a}", "{876543210987654321: a}", True),
        ("123456789012345678 123456789012345678", "876543210987654321 123456789012345678", False),
        ("loss 0.1234", "loss 0.1235", True),
        ("loss 0.1", "loss 0.5", False),
        ("3 messages", "4 messages", False),
    ],
)
def test_only_ids_and_last_digits_may_differ(printed: str, shown: str, equal: bool) -> None:
    assert agrees(printed, shown) is equal


@pytest.mark.parametrize("page", ["docs/tutorial.md", "docs/from-pysyft.md", "examples/README.md"])
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    links = [
        link for link in re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8")) if "://" not in link
    ]
    assert links
    assert not [link for link in links if not (path.parent / link).exists()]
