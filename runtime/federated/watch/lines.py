"""A run's events as JSON lines: one event a line, written at once, so that a killed run leaves what it did.

Reading them back gives the events again; `planc report` makes the page of them.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import msgspec

from planc.errors import DataError, PlancError
from runtime.federated.events import Event, RunDone, RunStarted, from_json, to_json

_DIGITS = 20
"""Of a whole number, at most: more are no count and no seed."""


class JsonLines:
    """A callback that writes every event to a file, one line each.

    A run that is resumed at round n goes on with the file: what it holds of round n and later is dropped,
    since these rounds come again. A run that begins with round 1 begins the file anew.

    Raises (when the run starts, or a line is written):
        DataError: the file that a resumed run goes on with is not one of events.
        OSError: it cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file: TextIO | None = None
        self._early: list[Event] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._begin(event.first)
        elif self._file is None:
            # Of a damaged checkpoint it is told before the run knows where it begins.
            self._early.append(event)
            return
        for waiting in (*self._early, event):
            self._write(line_of(waiting))
        self._early.clear()
        if isinstance(event, RunDone):
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, line: str) -> None:
        assert self._file is not None
        self._file.write(line)
        self._file.flush()

    def _begin(self, first: int) -> None:
        self.close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept: list[str] = []
        if first > 1 and self.path.exists():
            kept = [line_of(event) for event in read_lines(self.path) if _stays(event, first)]
        temporary = self.path.with_name(f"{self.path.name}.{secrets.token_hex(6)}.tmp")
        try:
            temporary.write_text("".join(kept), encoding="utf-8")
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)
        self._file = self.path.open("a", encoding="utf-8")


def line_of(event: Event) -> str:
    """One line, with its end. JSON has no word for numbers that are not finite: they are null."""
    return json.dumps(_finite(to_json(event)), ensure_ascii=False, separators=(",", ":")) + "\n"


def read_lines(path: str | os.PathLike[str]) -> list[Event]:
    """The events of a file. A last line that was cut (the run was killed) is left out.

    Raises:
        DataError: a line is no event; names the line.
        OSError: the file cannot be read.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise DataError(
            f"{path}: expected JSON lines, one event each, got bytes that are not UTF-8"
        ) from None
    return list(_events(path, text))


def _events(path: Path, text: str) -> Iterator[Event]:
    whole, _, _ = text.rpartition("\n")
    for number, line in enumerate(whole.split("\n") if whole else [], 1):
        try:
            yield _event(json.loads(line, parse_int=_whole))
        except (ValueError, AttributeError, RecursionError, PlancError, msgspec.ValidationError) as error:
            raise DataError(
                f"{path}, line {number}: expected an event of a run, as JsonLines writes them: {error}"
            ) from None


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _event(data: Any) -> Event:
    if not isinstance(data, dict):
        raise ValueError(f"got {type(data).__name__}, not an object")
    for name in ("metrics", "evaluation", "slowest"):
        if isinstance(data.get(name), dict):
            data[name] = {key: math.nan if value is None else value for key, value in data[name].items()}
    kind = type(from_json(data))
    fields = {key: value for key, value in data.items() if key != "event"}
    return msgspec.convert(fields, kind, str_keys=True)


def _stays(event: Event, first: int) -> bool:
    """Whether an event is of the rounds before ``first``."""
    if isinstance(event, RunDone):
        return False
    return getattr(event, "number", 0) < first


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


__all__ = ["JsonLines", "line_of", "read_lines"]
