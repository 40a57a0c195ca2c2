"""What the tests of the durable store share: a worker that is started again, file operations that fail."""

from __future__ import annotations

import errno
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.durable import state
from runtime.durable import DurableStore, Files
from runtime.messages import Body, Request
from runtime.replay import Answered
from runtime.worker import Worker

__all__ = ["Copying", "Counting", "Home", "copy", "full", "request", "state"]


def request(
    number: int, body: Body, session: int = 1, settled: int = 0, release: tuple[int, ...] = ()
) -> Request:
    return Request("me", session, number, settled, release, body)


class Home:
    """One worker over its lives: ``crash`` is what kill -9 leaves, ``restart`` what SIGTERM does."""

    def __init__(self, folder: Path, files: Files | None = None, **options: Any) -> None:
        self.folder = folder
        self.options = options
        self._number = 0
        self.worker = self.start(files)

    @staticmethod
    def store(folder: Path) -> DurableStore:
        return DurableStore(folder)

    def start(self, files: Files | None = None) -> Worker:
        self.worker = Worker("bob", durable=DurableStore(self.folder, files=files), **self.options)
        return self.worker

    def restart(self, files: Files | None = None) -> Worker:
        self.worker.close()
        return self.start(files)

    def handle(self, number: int, body: Body, *tensors: torch.Tensor, **options: Any) -> Answered:
        """The answer to a request; the frame's memory is the worker's, so the tensors are copied."""
        return self.worker.handle(request(number, body, **options), [t.clone() for t in tensors])

    @property
    def files_there(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "tensors").iterdir())


class Counting(Files):
    """Calls ``before`` with the number of each operation, and ``after`` when it is done."""

    def __init__(self) -> None:
        self.steps = 0
        self.before: Callable[[int, str], None] = lambda _number, _what: None
        self.after: Callable[[int, str], None] = lambda _number, _what: None

    def _step(self, what: str, run: Callable[[], Any]) -> Any:
        self.steps += 1
        number = self.steps
        self.before(number, what)
        out = run()
        self.after(number, what)
        return out

    def create(self, path: Path) -> int:
        return self._step("create", lambda: super(Counting, self).create(path))

    def write(self, descriptor: int, data: memoryview) -> int:
        return self._step("write", lambda: super(Counting, self).write(descriptor, data))

    def sync(self, descriptor: int) -> None:
        self._step("sync", lambda: super(Counting, self).sync(descriptor))

    def rename(self, old: Path, new: Path) -> None:
        self._step("rename", lambda: super(Counting, self).rename(old, new))

    def sync_folder(self, folder: Path) -> None:
        self._step("sync folder", lambda: super(Counting, self).sync_folder(folder))

    def remove(self, path: Path) -> None:
        self._step("remove", lambda: super(Counting, self).remove(path))

    def execute(
        self, connection: sqlite3.Connection, statement: str, values: Sequence[Any] = ()
    ) -> sqlite3.Cursor:
        what = statement.split(" ")[0]
        return self._step(what, lambda: super(Counting, self).execute(connection, statement, values))


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def copy(folder: Path, to: Path) -> Path:
    """The folder as a process that is killed now leaves it."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("*-shm", "lock"))
    return to


class Copying(Counting):
    """Copies the folder before every operation and after the last."""

    def __init__(self, folder: Path, to: Path) -> None:
        super().__init__()
        self.copies: list[Path] = []

        def take(number: int, what: str) -> None:
            self.copies.append(copy(folder, to / f"{number}-{what.replace(' ', '-')}"))

        self.before = take
