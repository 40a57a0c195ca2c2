"""What a command is pointed at, as a `planc.Plan`: a text, an artifact, an exported program, Python code.

Importing Python code runs it, and torch's reader of exported programs may run what a file brings along: that
is what a user asks for who names some. Texts and artifacts run nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import typer

import planc
from planc.codec.artifact import MAGIC
from planc.errors import CaptureError, ParseError, PlancError, Span
from planc.text.suggest import nearest

TEXT, ARTIFACT, EXPORTED = ".plan", ".planc", ".pt2"
FORMS = "FILE.plan, FILE.planc, FILE.pt2, package.module:name or path/to/file.py:name"
TRUST = "Of these .pt2 files and Python code may run code when read: name only what you trust."
_IMPORTED_AS = "planc_source"  # a name of our own: a file called json.py must not become the module json


def load(source: str) -> planc.Plan:
    """The plan that ``source`` names, in one of the forms of `FORMS`.

    Raises:
        SourceError: a text is wrong.
        DecodeError: an artifact is damaged, or a file holds no exported program.
        PlanError: what was found is no valid plan, or is not built yet.
        CaptureError: Python code cannot be imported, or has no such plan; an exported program cannot be one.
        typer.BadParameter: ``source`` is of none of these forms.
        OSError: a file cannot be read.
    """
    module, _, name = source.rpartition(":")
    # First, since a name may end as a file does: nets.py:Net.plan.
    if _is_dotted(name) and (module.endswith(".py") or _is_dotted(module)):
        return _plan_in(_import(module), module, name)
    if source.endswith(TEXT):
        return planc.parse(read_text(source), source)
    if source.endswith(ARTIFACT):
        return planc.load(source)
    if source.endswith(EXPORTED):
        return planc.load_exported(source, optimize=False)
    raise typer.BadParameter(f"{source!r} names no plan: expected {FORMS}")


def read_text(path: str) -> str:
    """The text of a source file.

    Raises:
        ParseError: it is not UTF-8.
        OSError: it cannot be read.
    """
    data = Path(path).read_bytes()
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8")) + 1
        span = Span(path, before.count(b"\n") + 1, column, column + 1)
        if data.startswith(MAGIC):
            hint = f"rename it to *{ARTIFACT}"
            raise ParseError("the file is an artifact, not text", span, hint=hint) from None
        message = f"the file is not UTF-8 text: byte {data[error.start]:#04x}"
        raise ParseError(message, span, data.decode("utf-8", "replace")) from None


def _is_dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _import(module: str) -> ModuleType:
    is_file = module.endswith(".py")
    folder = Path(module).resolve().parent if is_file else Path.cwd()
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    if is_file and not Path(module).is_file():
        raise CaptureError(f"cannot import {module}: there is no such file")
    try:
        return _run_file(module) if is_file else importlib.import_module(module)
    except PlancError:
        raise  # a plan that is built on import says itself what is wrong
    except (Exception, SystemExit) as error:
        raise CaptureError(f"cannot import {module}: {_told(error, is_file)}") from error


def _run_file(path: str) -> ModuleType:
    name = f"{_IMPORTED_AS}_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, Path(path).resolve())
    assert spec is not None, "the suffix .py has a loader"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _told(error: BaseException, is_file: bool) -> str:
    """The error in a line, with the last line of code outside the import system."""
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and "importlib" not in frame.filename
    ]
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    if frames:
        return f"{what}\n  at {frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}"
    if isinstance(error, ModuleNotFoundError) and not is_file:
        return f"{what} (searched the current folder and the installed packages)"
    return what


def _plan_in(module: ModuleType, called: str, name: str) -> planc.Plan:
    thing: Any = module
    for part in name.split("."):
        try:
            thing = getattr(thing, part)
        except AttributeError:
            raise CaptureError(f"{called} has no {name!r}{_offer(module, name)}") from None
    if isinstance(thing, planc.Plan):
        return thing
    if isinstance(thing, (planc.FunctionPlan, planc.PlanModule)):
        return thing.plan
    kind = "a class" if isinstance(thing, type) else f"of type {type(thing).__name__}"
    raise CaptureError(
        f"{called}:{name} is {kind}, not a plan; make one with planc.trace, planc.train_step or "
        f"@planc.plan(args_shape=...){_offer(module, name)}"
    )


def _offer(module: ModuleType, name: str) -> str:
    """The plans that a module does have, the likeliest first."""
    kinds = (planc.Plan, planc.FunctionPlan, planc.PlanModule)
    have = [key for key, value in vars(module).items() if isinstance(value, kinds)]
    hint = nearest(name, have, f"its plans: {', '.join(have[:8])}" if have else "it has no plans")
    return f"; {hint}"


__all__ = ["ARTIFACT", "FORMS", "TEXT", "load", "read_text"]
