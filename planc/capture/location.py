"""Whose line is being captured: a mode that notes the user's source line of every torch call."""

from __future__ import annotations

import linecache
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.fx.traceback
from torch.overrides import TorchFunctionMode

from planc.ir import Location

_HIDDEN = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(os.path.dirname(__file__)) + os.sep)
_KEY = "planc_location"


class _NoteLocation(TorchFunctionMode):
    """Annotates each traced node with the innermost frame that is neither torch's nor ours."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and is_hidden(frame.f_code.co_filename):
            frame = frame.f_back
        if frame is None:
            return func(*args, **(kwargs or {}))
        with torch.fx.traceback.annotate({_KEY: f"{frame.f_lineno}:{frame.f_code.co_filename}"}):
            return func(*args, **(kwargs or {}))


def is_hidden(filename: str) -> bool:
    """Whether a source file is torch's or planc's own, so that users are not pointed to it."""
    return filename.startswith(_HIDDEN) or filename.startswith("<")


@contextmanager
def noting_locations() -> Iterator[None]:
    """While active, nodes that make_fx records carry the user's line."""
    with torch.fx.traceback.preserve_node_meta(), _NoteLocation():
        yield


def location_of(meta: dict[str, Any]) -> Location | None:
    """The user's line in a node's metadata, if it has one."""
    noted = (meta.get("custom") or {}).get(_KEY)
    if not noted:
        return None
    line, _, file = str(noted).partition(":")
    return Location(file, int(line), linecache.getline(file, int(line)).strip())


def users_line(error: BaseException) -> Location | None:
    """The user's line where an exception was raised: the innermost frame that is neither torch's nor ours."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not is_hidden(frame.filename) and frame.lineno is not None:
            return Location(frame.filename, frame.lineno, frame.line or "")
    return None


def pointing(message: str, where: Location | None) -> str:
    """``message`` with the user's line below it."""
    return message if where is None else f"{message}\n  {where}: {where.text}"
