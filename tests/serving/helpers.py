"""`planc worker` as a real process, as its owner would start it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# As tests run, so that two processes fit two cores.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

SLOW = """plan slow(w: f32[700, 700], x: f32[n]) -> f32[700, 700] {
  for each in batches(x, size=1) {
    w = tanh(w @ w)
  }
  return w
}"""
"""Takes a second for some 100 elements of x."""


class Process:
    """A worker that runs.

    Attributes:
        greeting: what it said when it was ready, in lines.
        addresses: where it listens.
    """

    def __init__(self, folder: Path, *args: str) -> None:
        self.socket = folder / "owner.sock"
        self._log = folder / "log.jsonl"
        command = [
            sys.executable,
            "-m",
            "planc",
            "worker",
            "--id",
            "bob",
            "--socket",
            str(self.socket),
            *args,
        ]
        with self._log.open("a") as log:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=ENVIRONMENT, cwd=folder
            )
        assert self.process.stdout is not None
        self.greeting: list[str] = []
        for line in self.process.stdout:
            self.greeting.append(line.rstrip())
            if line.startswith("Ctrl-C"):
                break
        else:
            raise AssertionError(f"the worker did not start: {self._log.read_text()}")
        self.addresses = re.findall(r"^  listens  (\S+)$", "\n".join(self.greeting), re.M)

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(60)


@contextmanager
def started(folder: Path, *args: str) -> Generator[Process]:
    """A worker process, ended with the block."""
    worker = Process(folder, *args)
    try:
        yield worker
    finally:
        worker.process.kill()
        worker.process.wait(60)
        assert worker.process.stdout is not None
        worker.process.stdout.close()
