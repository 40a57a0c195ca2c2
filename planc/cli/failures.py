"""How errors leave the command line: one message on standard error and a stable exit code, never a traceback.

The errors themselves are those of `planc.errors`; this says only how they end a command.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperGroup

from planc.errors import (
    CaptureError,
    DataError,
    DecodeError,
    ExecutionError,
    InputError,
    PlancError,
    PlanError,
    SourceError,
)


@dataclass(frozen=True, slots=True)
class Exit:
    """One exit code: which errors end so, and what ``--help`` says of it."""

    code: int
    meaning: str
    kinds: tuple[type[BaseException], ...] = ()


EXITS = (
    Exit(0, "success"),
    Exit(1, "any other error; diff or fmt --check found a difference", (PlancError,)),
    Exit(2, "wrong usage: an unknown option, a missing argument"),
    Exit(3, "the text of a plan, or a file that describes a run, is wrong", (SourceError,)),
    Exit(4, "a plan is not valid, or larger than a limit", (PlanError,)),
    Exit(5, "a file is damaged or of another version", (DecodeError,)),
    Exit(6, "inputs or dims do not fit the plan", (InputError,)),
    Exit(7, "Python code cannot be imported or captured", (CaptureError,)),
    Exit(8, "a file or data set is missing, unreadable or of the wrong form", (DataError, OSError)),
    Exit(9, "an operation failed while a plan ran", (ExecutionError,)),
    Exit(130, "interrupted", (KeyboardInterrupt,)),
)
"""Part of the interface: scripts rely on these numbers, so a code never changes its meaning."""


def exit_code(error: BaseException) -> int | None:
    """The code that ``error`` ends a command with, or None where it is a bug and not an error of use."""
    found = [e for e in EXITS if isinstance(error, e.kinds)]
    # The root of the tree stands for what has no code of its own.
    return min((e.code for e in found if e.code != 1), default=found[0].code if found else None)


def render(error: BaseException) -> str:
    """The error as people read it; no trailing newline."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, SourceError):
        return error.render()
    if isinstance(error, OSError) and error.filename is not None:
        return f"error: {error.filename}: {error.strerror or type(error).__name__}"
    return f"error: {error}"


class Commands(TyperGroup):
    """The commands, with errors of use turned into a message and an exit code. A bug keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # whoever read our output has seen enough (`planc show a.planc | head`): typer knows
        except (PlancError, OSError, KeyboardInterrupt) as error:
            code = exit_code(error)
            assert code is not None, "every kind that is caught here has its line in EXITS"
            typer.echo(render(error), err=True)
            raise typer.Exit(code) from None


def epilog() -> str:
    """The exit codes, as ``--help`` ends."""
    return "\n\n\b\n" + "\n".join(["Exit codes:", *(f"  {e.code:<4} {e.meaning}" for e in EXITS)])


__all__ = ["EXITS", "Commands", "Exit", "epilog", "exit_code", "render"]
