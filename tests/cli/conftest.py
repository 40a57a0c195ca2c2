"""What the tests of the command line share: a folder of their own, and the command called in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from planc.cli import app

PREDICT = """\
plan predict(x: f32[b, 784], param w: f32[10, 784] "fc.weight",
             param c: f32[10] "fc.bias") -> f32[b, 10] where b in 1..1024 {
  return softmax(x @ t(w) + c, dim=1)  # as people write it
}
"""

Call = Callable[..., Any]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder that is the current one, with ``predict.plan`` in it; imports are undone afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "predict.plan").write_text(PREDICT, encoding="utf-8")
    before = set(sys.modules)
    yield tmp_path
    for name in sys.modules.keys() - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def call(folder: Path) -> Call:
    """Call ``planc`` with these arguments; what comes back has exit_code, stdout and stderr."""

    def run(*args: str, code: int = 0) -> Any:
        result = CliRunner().invoke(app, list(args), prog_name="planc")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception  # a traceback is a bug, whatever the exit code
        assert result.exit_code == code, result.output
        return result

    return run
