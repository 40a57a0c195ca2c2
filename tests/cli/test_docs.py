"""docs/cli.md is true: its files are written, its commands run in order, and their output is what it says.

``PLANC_UPDATE_GOLDEN=1 pytest tests/cli/test_docs.py`` writes the outputs anew.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from planc.cli import app
from tests.cli.golden import REGENERATE

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
_BLOCK = re.compile(r"^```(plan|python|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Shell:
    """As much of a shell as the page needs."""

    def __init__(self) -> None:
        self.code = 0

    def run(self, line: str) -> str:
        command, *args = shlex.split(line)
        if command == "planc":
            result = CliRunner().invoke(app, args, prog_name="planc")
            assert result.exception is None or isinstance(result.exception, SystemExit)
            self.code = result.exit_code
            return result.output
        if command == "cat":
            return Path(args[0]).read_text(encoding="utf-8")
        if command == "echo":
            return f"{self.code}\n"
        assert (command, args[0]) == ("python", "-c")
        exec(args[1], {})
        return ""

    def replay(self, block: str) -> str:
        """A console block with the output that its commands give now."""
        commands = [line for line in block.splitlines() if line.startswith("$ ")]
        return "\n".join(f"{line}\n{_stripped(self.run(line[2:]))}" for line in commands)


def _stripped(output: str) -> str:
    return "".join(f"{line.rstrip()}\n" for line in output.splitlines())


def test_the_page_is_true(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    page, shell, parts, end = PAGE.read_text(encoding="utf-8"), Shell(), list[str](), 0
    for block in _BLOCK.finditer(page):
        kind, text = block.groups()
        if kind != "console":
            name = re.match(r"# ([\w.]+)", text)
            assert name is not None, "the first line of a file says its name"
            Path(name[1]).write_text(text, encoding="utf-8")
            continue
        parts += [page[end : block.start(2)], shell.replay(text)]
        end = block.end(2)
    actual = "".join([*parts, page[end:]])
    if REGENERATE:
        PAGE.write_text(actual, encoding="utf-8")
    assert actual == page or REGENERATE


def test_every_command_is_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for command in app.registered_commands:
        assert f"\n## planc {command.name}\n" in page
