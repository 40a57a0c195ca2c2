"""A worker's log: one JSON object a line, on standard error. No elements of a tensor, no secrets."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TextIO


class JsonLines(logging.Formatter):
    """Formats records as JSON objects: time, level, worker, where, text, and the error if there is one."""

    def __init__(self, worker: str) -> None:
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "worker": self._worker,
            "logger": record.name,
            "text": record.getMessage(),
        }
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            # The traceback of the worker's own code, without the error's text: torch quotes elements in it.
            frames = []
            at = error.__traceback__
            while at is not None:
                frames.append(f"{at.tb_frame.f_code.co_filename}:{at.tb_lineno}")
                at = at.tb_next
            line["error"] = type(error).__name__
            line["at"] = frames
        return json.dumps(line, ensure_ascii=False)


@contextmanager
def log_to(worker: str, level: str = "info", stream: TextIO | None = None) -> Generator[None]:
    """Let the whole process log so, as long as the block lasts."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines(worker))
    root = logging.getLogger()
    before, before_level = list(root.handlers), root.level
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    try:
        yield
    finally:
        root.handlers[:] = before
        root.setLevel(before_level)
