"""The form of an audit log: canonical lines, each with the hash of the one before, and its check.

Reads files and writes none. A log is a file and the segments that it was rotated into, ``NAME.000001`` and
on; ``NAME.head`` has the number and hash of the last line.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

GENESIS = "0" * 64
"""What the first line of a log has for the hash of the line before."""
HEAD_BYTES = 128
_PROBLEMS = 50
_NUMBERED = re.compile(r"\.[0-9]{6}")
_encode = msgspec.json.Encoder(order="sorted").encode


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The number and hash of a log's last line."""

    n: int
    hash: str


def encode_line(entry: Mapping[str, Any]) -> bytes:
    """An entry as its line, without the end of it: sorted keys, no spaces."""
    return _encode(entry)


def hash_line(line: bytes) -> str:
    """The hash of a line, without the end of it."""
    return hashlib.sha256(line).hexdigest()


def decode_line(line: bytes) -> dict[str, Any] | None:
    """The entry of a line, or None where it is none: torn, or overwritten."""
    try:
        entry = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if (
        not isinstance(entry, dict)
        or type(entry.get("n")) is not int
        or not isinstance(entry.get("prev"), str)
    ):
        return None
    return entry


def encode_head(head: Head) -> bytes:
    """A head as its file: always of one length, so that it is overwritten in one piece."""
    return msgspec.json.encode(head).ljust(HEAD_BYTES - 1) + b"\n"


def read_head(path: Path) -> Head | None:
    """The head that belongs to a log, or None where there is none that can be read."""
    try:
        return msgspec.json.decode(head_path(path).read_bytes(), type=Head)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def head_path(path: Path) -> Path:
    """Where the head of a log is."""
    return path.with_name(f"{path.name}.head")


def segments(path: Path) -> list[Path]:
    """The files of a log that are there, the oldest first, the one that is written to last."""
    prefix = path.name
    rotated = [p for p in path.parent.glob(f"{prefix}.*") if _NUMBERED.fullmatch(p.name[len(prefix) :])]
    return [*sorted(rotated), *([path] if path.exists() else [])]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a log; ``entry`` is None where it is no entry."""

    path: Path
    number: int
    data: bytes
    entry: dict[str, Any] | None
    ended: bool

    @property
    def where(self) -> str:
        return f"{self.path.name}:{self.number}"


def read_lines(paths: Sequence[Path]) -> Iterator[Line]:
    """All lines of these files in order."""
    for path in paths:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                data = raw.removesuffix(b"\n")
                yield Line(path, number, data, decode_line(data), raw.endswith(b"\n"))


@dataclass(slots=True)
class Verified:
    """What the check of a log found.

    Attributes:
        lines: how many entries there are.
        first: the number of the first: 1, where no older segment is missing.
        head: the number and hash of the last.
        problems: what shows that the log is not as it was written.
        notes: what happened to it and is no sign of a change: crashes while a line was written.
    """

    lines: int = 0
    first: int = 0
    head: Head = field(default_factory=lambda: Head(0, GENESIS))
    problems: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])

    @property
    def good(self) -> bool:
        return not self.problems

    def problem(self, text: str) -> None:
        if len(self.problems) < _PROBLEMS:
            self.problems.append(text)


def verify(path: Path, witness: Head | None = None) -> Verified:
    """Check a log from its first segment to its last line.

    A line that was altered, removed, put in or moved shows by the hashes and numbers of those after it; at
    the end of the log, by its head. Who can write the log and its head can make both anew: that shows only
    against a ``witness``, a head that was kept elsewhere.

    Raises:
        OSError: a file cannot be read.
    """
    found = Verified()
    torn: list[Line] = []
    seen = witness is None
    for line in read_lines(segments(path)):
        if line.entry is None:
            torn.append(line)
            continue
        _check_line(found, line, torn)
        torn = []
        if witness is not None and found.head.n == witness.n:
            seen = True
            if found.head.hash != witness.hash:
                found.problem(f"{line.where}: line {witness.n} is not the one that the witness has")
    if torn:
        found.notes.append(f"{torn[0].where}: the last line is torn: the worker stopped while it was written")
    if not seen and witness is not None:
        found.problem(
            f"the log ends at line {found.head.n}; the witness has line {witness.n}: its end was cut off"
        )
    _check_head(found, path)
    return found


def _check_line(found: Verified, line: Line, torn: Sequence[Line]) -> None:
    entry = line.entry
    assert entry is not None
    before, n, prev = found.head, entry["n"], entry["prev"]
    if torn:
        data = b"\n".join(each.data for each in torn)
        if entry.get("kind") == "torn" and entry.get("torn") == hash_line(data):
            found.notes.append(f"{torn[0].where}: a line is torn: the worker stopped while it was written")
        else:
            found.problem(f"{torn[0].where}: this is no entry, and nothing says that it was torn")
    if entry.get("kind") == "damaged":
        found.problem(
            f"{line.where}: when the worker started here, the log did not end as it had left it "
            f"(it had written line {entry.get('head_n')})"
        )
    if not found.lines:
        found.first = n
        if n != 1:
            found.notes.append(f"the log begins with line {n}: older segments are not here")
        elif prev != GENESIS:
            found.problem(f"{line.where}: the first line does not begin a log")
    elif n != before.n + 1:
        found.problem(f"{line.where}: line {n} follows line {before.n}: lines were removed, put in or moved")
    elif prev != before.hash:
        found.problem(f"{line.where}: the line before, {before.n}, was altered")
    if not found.lines or n > before.n or prev == before.hash:
        found.head = Head(n, hash_line(line.data))
    found.lines += 1


def _check_head(found: Verified, path: Path) -> None:
    kept = read_head(path)
    if kept is None:
        if found.lines:
            found.problem(
                f"{head_path(path).name} is missing or damaged: whether lines at the end are missing is "
                "unknown"
            )
    elif kept.n > found.head.n:
        found.problem(
            f"the log ends at line {found.head.n}, its head says {kept.n}: lines at the end are missing"
        )
    elif kept.n == found.head.n and kept.hash != found.head.hash:
        found.problem(f"line {kept.n}, the last, was altered: its head has another hash")


__all__ = [
    "GENESIS",
    "HEAD_BYTES",
    "Head",
    "Line",
    "Verified",
    "decode_line",
    "encode_head",
    "encode_line",
    "hash_line",
    "head_path",
    "read_head",
    "read_lines",
    "segments",
    "verify",
]
