"""Where in a TOML file a key stands, and how errors write keys and values. Knows no file's meaning."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from typing import Any

At = tuple[str, ...]
"""Where in the file something stands: its keys from the outermost."""


def line_of(text: str, at: At) -> int | None:
    """The line of a key, where it stands as people write it: below the header of its section."""
    section: At = ()
    best: tuple[int, int] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("["):
            section = place = _keys(stripped)
        else:
            place = (*section, *_keys(f"{stripped.partition('=')[0]}= 0"))
        # An inline table, and a dotted key, stand on the line of what they begin with.
        if place and place == at[: len(place)] and (best is None or len(place) > best[0]):
            best = len(place), number
    return best[1] if best else None


def dotted(at: At) -> str:
    """Keys as TOML joins them."""
    return ".".join(key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else repr(key[:80]) for key in at)


def listed(words: Iterable[str]) -> str:
    """Words in quotes, with commas."""
    return ", ".join(repr(word) for word in words)


def shown(value: object) -> str:
    """A value of the file as TOML has it, cut."""
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _keys(line: str) -> At:
    """The keys of a header, or of a line with a key; none where it is neither."""
    try:
        inner: Any = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return ()
    out: list[str] = []
    while isinstance(inner, dict) and inner:
        key, inner = next(iter(inner.items()))
        out.append(key)
    return tuple(out)


__all__ = ["At", "dotted", "line_of", "listed", "shown"]
