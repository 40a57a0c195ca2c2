"""Writes examples/tutorial.ipynb from docs/tutorial.md: prose, code as cells, outputs as it shows them.

It runs nothing, and needs no Jupyter. ``python docs/notebook.py``
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "tutorial.md"
NOTEBOOK = ROOT / "examples" / "tutorial.ipynb"
_BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:)")


@dataclass(frozen=True)
class Code:
    """A block of code, and what it prints."""

    source: str
    output: str


def parts(page: str) -> list[str | Code]:
    """A page as prose and blocks of code, in order."""
    out: list[str | Code] = []
    end = 0
    for block in _BLOCK.finditer(page):
        out += [page[end : block.start()], Code(block[1], block[2] or "")]
        end = block.end()
    return [part for part in (*out, page[end:]) if isinstance(part, Code) or part.strip()]


def joined(things: list[str | Code]) -> str:
    """The page that has these parts."""
    return "".join(part if isinstance(part, str) else _fenced(part) for part in things)


def notebook(page: str) -> str:
    """A page as a notebook: the text of its .ipynb file."""
    cells = [_cell(i, part) for i, part in enumerate(parts(page))]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    whole = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def _fenced(code: Code) -> str:
    output = f"\n```text\n{code.output}```\n" if code.output else ""
    return f"```python\n{code.source}```\n{output}"


def _cell(number: int, part: str | Code) -> dict[str, Any]:
    cell = {"id": f"cell-{number}", "metadata": {}}
    if isinstance(part, str):
        # The notebook is in another folder than the page.
        return {"cell_type": "markdown", **cell, "source": _lines(_LINK.sub("](../docs/", part.strip()))}
    output = {"name": "stdout", "output_type": "stream", "text": part.output.splitlines(keepends=True)}
    return {
        "cell_type": "code",
        "execution_count": None,
        **cell,
        "outputs": [output] if part.output else [],
        "source": _lines(part.source.strip()),
    }


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    NOTEBOOK.write_text(notebook(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
