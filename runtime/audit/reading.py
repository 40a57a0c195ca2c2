"""An audit log as its owner reads it: filtered, a line an entry, or checked. Writes nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from planc.draw.figures import size
from planc.errors import DataError, InputError
from planc.text.suggest import count_of
from runtime.access.reports import plain
from runtime.access.units import parse_seconds
from runtime.audit.chain import Head, Verified, read_lines, segments, verify

_HASH = re.compile(r"([0-9]{1,18}):([0-9a-f]{64})")


def entries(path: Path, client: str | None = None, since: str | None = None) -> Iterator[dict[str, Any]]:
    """The entries of a log, of one client, from a time on: all of its segments.

    Args:
        path: the log.
        client: the name of a client, or None for all.
        since: a date or time (ISO 8601), or how long ago ("2 h").

    Raises:
        DataError: there is no such log.
        InputError: ``since`` is no time.
    """
    files = _files(path)
    start = None if since is None else parse_since(since)
    for line in read_lines(files):
        entry = line.entry
        if entry is None or (client is not None and entry.get("who") != client):
            continue
        if start is None or str(entry.get("time", "")) >= start:
            yield entry


def check(path: Path, witness: str | None = None) -> Verified:
    """Check a log; ``witness`` is ``NUMBER:HASH`` of a line, kept elsewhere.

    Raises:
        DataError: there is no such log.
        InputError: the witness is of another form.
    """
    _files(path)
    if witness is None:
        return verify(path)
    found = _HASH.fullmatch(witness)
    if found is None:
        raise InputError(
            f"a witness is NUMBER:HASH, as `planc worker status` shows them, not {witness[:80]!r}"
        )
    return verify(path, Head(int(found[1]), found[2]))


def check_lines(found: Verified) -> Iterator[str]:
    """What a check found, for people."""
    yield from (f"problem: {text}" for text in found.problems)
    yield from (f"note: {text}" for text in found.notes)
    if found.good:
        yield f"{count_of(found.lines, 'line')}, unbroken; the last is {found.head.n}:{found.head.hash}"
    else:
        yield f"{count_of(found.lines, 'line')}: this log is not as it was written"


def line_of(entry: Mapping[str, Any]) -> str:
    """One entry as people read it."""
    parts = [str(entry.get("time", ""))[:19].replace("T", " ")]
    if "who" in entry:
        parts.append(plain(str(entry["who"])))
    parts.append(str(entry.get("kind", "")))
    if "counts" in entry:
        parts.append(", ".join(f"{number} {kind}" for kind, number in entry["counts"].items()))
    if "plan" in entry:
        parts.append(f"plan {str(entry['plan'])[:12]}")
    if entry.get("data"):
        parts.append(f"on {', '.join(map(_data, entry['data']))}")
    if "left" in entry:
        names = ", ".join(f"{plain(each['name'])} {each['type']}" for each in entry["left"][:4])
        more = ", ..." if len(entry["left"]) > 4 else ""
        to = f" to {plain(entry['left'][0]['to'])}" if "to" in entry["left"][0] else ""
        parts.append(f"left{to}: {names}{more} ({size(entry['bytes'])})")
    if "result" in entry:
        parts.append(str(entry["result"]))
    return "  ".join(parts)


def parse_since(text: str) -> str:
    """A moment as the log writes it.

    Raises:
        InputError: it is neither a time nor a duration.
    """
    try:
        at = datetime.now(UTC) - timedelta(seconds=parse_seconds(text))
    except ValueError:
        try:
            at = datetime.fromisoformat(text)
        except ValueError:
            raise InputError(
                f"--since: expected a time such as 2026-01-31 or 2026-01-31T12:00, or '2 h', got "
                f"{text[:40]!r}"
            ) from None
        at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _data(each: Mapping[str, Any]) -> str:
    tags = " ".join(plain(tag) for tag in each.get("tags", ()))
    private = "private " if each.get("private") else ""
    return f"{private}{tags or each.get('id')} of {plain(str(each.get('owner')))}"


def _files(path: Path) -> list[Path]:
    files = segments(path)
    if not files:
        raise DataError(f"{path}: there is no audit log")
    return files


__all__ = ["check", "check_lines", "entries", "line_of", "parse_since"]
