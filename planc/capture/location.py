"""Whose line is being captured: a mode that notes the user's source line of every torch call.

The mode also refuses what `planc.capture.refusals` knows that no plan can do, at that line.
"""

from __future__ import annotations

import inspect
import linecache
import os
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.fx.traceback
from torch.overrides import TorchFunctionMode

from planc.capture.refusals import call_checked, is_hint, print_refusal
from planc.errors import CaptureError
from planc.ir import Location

_HIDDEN = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(os.path.dirname(__file__)) + os.sep)
_GENERATED = ("<eval_with_key", "<frozen ", "<planc ", "<string>")  # other "<...>" are a shell's: the user's
_KEY = "planc_location"


class _NoteLocation(TorchFunctionMode):
    """Annotates each traced node with the innermost frame that is neither torch's nor ours."""

    def __init__(self, after_call: Callable[[FrameType | None], None]) -> None:
        super().__init__()
        self._after_call = after_call

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        here = inspect.currentframe()
        caller = None if here is None else here.f_back
        frame = caller
        while frame is not None and is_hidden(frame.f_code.co_filename):
            frame = frame.f_back
        refusal = print_refusal(func, caller, is_hidden)
        if refusal is not None:
            raise CaptureError(pointing(refusal, location_at(frame)))
        if is_hint(func, caller, is_hidden):
            return False
        if frame is None:
            return func(*args, **(kwargs or {}))
        with torch.fx.traceback.annotate({_KEY: f"{frame.f_lineno}:{frame.f_code.co_filename}"}):
            result, refusal = call_checked(func, args, kwargs or {})
        self._after_call(frame)
        if refusal is not None:
            raise CaptureError(pointing(refusal, location_at(frame)))
        return result


def location_at(frame: FrameType | None) -> Location | None:
    """The line that a frame is at."""
    if frame is None:
        return None
    return _line_of(frame.f_code.co_filename, frame.f_lineno)


def _line_of(file: str, line: int) -> Location:
    return Location(file, line, linecache.getline(file, line).strip())


def is_hidden(filename: str) -> bool:
    """Whether a source file is torch's or planc's own, so that users are not pointed to it."""
    return filename.startswith((*_HIDDEN, *_GENERATED))


@contextmanager
def noting_locations(after_call: Callable[[FrameType | None], None]) -> Generator[None]:
    """While active, nodes that make_fx records carry the user's line.

    ``after_call`` is told the user's frame after each call of torch that their code leads to.
    """
    with torch.fx.traceback.preserve_node_meta(), _NoteLocation(after_call):
        yield


def location_of(meta: dict[str, Any]) -> Location | None:
    """The user's line in a node's metadata, if it has one."""
    noted = (meta.get("custom") or {}).get(_KEY)
    if not noted:
        return None
    line, _, file = str(noted).partition(":")
    return _line_of(file, int(line))


def users_line(error: BaseException) -> Location | None:
    """The user's line where an exception was raised: the innermost frame that is neither torch's nor ours."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not is_hidden(frame.filename) and frame.lineno is not None:
            return Location(frame.filename, frame.lineno, frame.line or "")
    return None


def pointing(message: str, where: Location | None) -> str:
    """``message`` with the user's line below it."""
    return message if where is None else f"{message}\n  {where}: {where.text}"
