"""Whose line is being captured: a mode that notes the user's source line of every torch call.

The mode also refuses what `planc.capture.refusals` knows that no plan can do, at that line.
"""

from __future__ import annotations

import inspect
import linecache
import os
from collections.abc import Callable, Generator, Iterable, Iterator
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
_OURS = os.path.dirname(__file__) + os.sep
_EXECUTED = "<string>"

AfterCall = Callable[[FrameType, Any, tuple[Any, ...], Any], None]
"""Told of each call of torch: the user's frame, the function, all arguments, and the result."""


class _NoteLocation(TorchFunctionMode):
    """Annotates each traced node with the innermost frame that is neither torch's nor ours."""

    def __init__(self, after_call: AfterCall) -> None:
        super().__init__()
        self._after_call = after_call

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        here = inspect.currentframe()
        caller = None if here is None else here.f_back
        found = _users(_outwards(caller))
        frame = None if found is None else found[0]
        refusal = print_refusal(func, caller, is_hidden)
        if refusal is not None:
            raise CaptureError(pointing(refusal, location_at(frame)))
        if is_hint(func, caller, is_hidden):
            return False
        if frame is None:
            return func(*args, **(kwargs or {}))
        with torch.fx.traceback.annotate({_KEY: _noted(frame)}):
            result, refusal = call_checked(func, args, kwargs or {})
        self._after_call(frame, func, (*args, *(kwargs or {}).values()), result)
        if refusal is not None:
            raise CaptureError(pointing(refusal, location_at(frame)))
        return result


def _outwards(frame: FrameType | None) -> Iterator[tuple[FrameType, int]]:
    while frame is not None:
        yield frame, frame.f_lineno
        frame = frame.f_back


def _users(frames: Iterable[tuple[FrameType, int]]) -> tuple[FrameType, int] | None:
    """The innermost frame of the user's, neither torch's nor ours, of ``frames`` from within outwards.

    Code that was run by ``exec`` looks like code that libraries make. It is the user's where it is the
    outermost and no other code of theirs is within the function that we trace.
    """
    executed: tuple[FrameType, int] | None = None
    within = True
    for frame, line in frames:
        file = frame.f_code.co_filename
        if file == _EXECUTED:
            executed = (frame, line) if within else executed
        elif file.startswith(_OURS) and file != __file__:
            within = False
            if executed is not None:
                return executed
        elif not is_hidden(file):
            return frame, line
    return executed


def location_at(frame: FrameType | None) -> Location | None:
    """The line that a frame is at."""
    if frame is None:
        return None
    return _line_of(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


def _line_of(file: str, line: int, function: str) -> Location:
    """The line's text, or where there is no source (code that was run by ``exec``) the function's name."""
    return Location(file, line, linecache.getline(file, line).strip() or f"(in {function})")


def is_hidden(filename: str) -> bool:
    """Whether a source file is torch's or planc's own, so that users are not pointed to it."""
    return filename.startswith((*_HIDDEN, *_GENERATED))


@contextmanager
def noting_locations(after_call: AfterCall) -> Generator[None]:
    """While active, nodes that make_fx records carry the user's line.

    ``after_call`` is told of each call of torch that their code leads to.
    """
    with torch.fx.traceback.preserve_node_meta(), _NoteLocation(after_call):
        yield


def location_of(meta: dict[str, Any]) -> Location | None:
    """The user's line in a node's metadata, if it has one."""
    noted = (meta.get("custom") or {}).get(_KEY)
    if not noted:
        return None
    line, function, file = str(noted).split(":", 2)
    return _line_of(file, int(line), function)


def _noted(frame: FrameType) -> str:
    return f"{frame.f_lineno}:{frame.f_code.co_name}:{frame.f_code.co_filename}"


def users_line(error: BaseException) -> Location | None:
    """The user's line where an exception was raised: the innermost frame that is neither torch's nor ours."""
    frames: list[tuple[FrameType, int]] = []
    trace = error.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame, trace.tb_lineno))
        trace = trace.tb_next
    found = _users(reversed(frames))
    return None if found is None else _line_of(found[0].f_code.co_filename, found[1], found[0].f_code.co_name)


def pointing(message: str, where: Location | None) -> str:
    """``message`` with the user's line below it."""
    return message if where is None else f"{message}\n  {where}: {where.text}"
