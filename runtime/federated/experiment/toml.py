"""Nested tables as TOML text: what ``--dry-run`` prints, and what is kept beside a run's results."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any


def dumps(data: Mapping[str, Any]) -> str:
    """Tables of texts, numbers, booleans and lists of them; the same as `tomllib` reads back."""
    return "\n".join(_lines(data, "")).strip() + "\n"


def _lines(table: Mapping[str, Any], name: str) -> Iterator[str]:
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    inner = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    if name and (plain or not inner):
        yield f"\n[{name}]"
    for key, value in plain.items():
        yield f"{key} = {_value(value)}"
    for key, value in inner.items():
        yield from _lines(value, f"{name}.{key}" if name else key)


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, str):
        # Texts of TOML are JSON's, but for DEL, which JSON leaves as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    return str(value).lower() if isinstance(value, bool) else repr(value)


__all__ = ["dumps"]
