"""Every error that planc and its runtime raise, as one tree.

    PlancError
    +-- SourceError                 something written by a person is wrong; carries a Span
    |   +-- ParseError              the text is not in the language
    |   +-- ElaborationError        the text is in the language but means no plan (names, types, shapes)
    |   +-- ExperimentError         (runtime.federated.experiment) a file does not describe a run
    +-- PlanError                   a plan is not valid
    |   +-- TypeCheckError          an operand or attribute does not fit its op
    |   +-- VerifyError             a rule of the IR is broken
    |   +-- LimitError              a plan or message is larger than a limit allows
    |   +-- NotBuiltError           a plan was used before its shapes were known
    +-- CaptureError                Python code could not be captured
    |   +-- UnsupportedOpError      it uses an operation outside the op table
    +-- DecodeError                 bytes are not a plan, an artifact or a frame
    |   +-- VersionError            they are, of a version this library does not read
    +-- InputError                  a plan was called with inputs that do not fit it
    +-- ExecutionError              an operation failed while a plan ran
    +-- DataError                   a data set is missing, corrupt or of the wrong form
    +-- WorkerError                 (runtime.errors) anything that went wrong at, or on the way to, a worker
    +-- RoundFailed                 (runtime.errors) too few clients' work came in a federated round

Every message says what was expected, what came, and what to do about it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """A place in a source text. Lines and columns count from 1; ``end_column`` is exclusive."""

    file: str
    line: int
    column: int
    end_column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class PlancError(Exception):
    """Root of the tree: catching it catches everything that planc raises on purpose."""


class SourceError(PlancError):
    """A person's source text is wrong.

    ``render`` shows the line with a caret below the place, and the hint, as compilers do.
    """

    def __init__(self, message: str, span: Span, source: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.span = span
        self.source = source
        self.hint = hint

    def render(self) -> str:
        """The error with its source line, a caret, and a hint: several lines, no trailing newline."""
        lines = self.source.split("\n")  # not splitlines: spans count these only
        out = [f"{self.span}: error: {self.message}"]
        if 0 < self.span.line <= len(lines):
            text = lines[self.span.line - 1].rstrip("\r").expandtabs(1)
            margin = f"{self.span.line:>5} | "
            width = max(1, min(self.span.end_column, len(text) + 1) - self.span.column)
            out.append(margin + text)
            out.append(" " * (len(margin) - 2) + "| " + " " * (self.span.column - 1) + "^" * width)
        if self.hint:
            out.append(f"      = hint: {self.hint}")
        return "\n".join(out)

    def __str__(self) -> str:
        return self.render()


class ParseError(SourceError):
    """The text is not in the language."""


class ElaborationError(SourceError):
    """The text is in the language but means no plan: an unknown name, op, or a type that does not fit."""


class PlanError(PlancError):
    """A plan is not valid."""


class TypeCheckError(PlanError):
    """An operand or attribute does not fit its op."""


class VerifyError(PlanError):
    """A rule of the IR is broken. ``where`` names the plan and node."""

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.where = where


class LimitError(PlanError):
    """A plan or message is larger than a limit allows. ``where`` names the plan and node, if there is one."""

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.where = where


class NotBuiltError(PlanError):
    """A plan was used before it was built: its shapes are not known yet."""


class CaptureError(PlancError):
    """Python code could not be captured as a plan."""


class UnsupportedOpError(CaptureError):
    """The code uses an operation that is not in the op table."""


class DecodeError(PlancError):
    """Bytes are not a plan, an artifact or a frame."""


class VersionError(DecodeError):
    """The bytes were written by a version of the format that this library does not read."""


class InputError(PlancError):
    """A plan was called with inputs that do not fit it: count, structure, dtype, shape or key."""


class ExecutionError(PlancError):
    """An operation failed while a plan ran. Names the op and the plan's line.

    ``op`` and ``node`` (its number in its plan, -1 if unknown) say which operation.
    """

    op: str = ""
    node: int = -1


class DataError(PlancError):
    """A data set is missing, corrupt or of the wrong form."""
