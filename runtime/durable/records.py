"""Small facts that a worker keeps beside objects and plans, by kind and key, as JSON. Not what they mean."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

_T = TypeVar("_T")
Key = tuple[str, str]
"""Kind and key."""


@dataclass(slots=True)
class Records:
    """Values by kind and key. A change is durable with the worker's next commit, or when it is undone, gone.

    Not thread-safe by itself: the worker has the lock.
    """

    _values: dict[Key, bytes] = field(default_factory=dict[Key, bytes])
    _before: dict[Key, bytes | None] = field(default_factory=dict[Key, "bytes | None"])

    def get(self, kind: str, key: str, type: type[_T]) -> _T | None:
        """The value of a key, if there is one.

        Raises:
            msgspec.ValidationError: it is not of this type.
        """
        data = self._values.get((kind, key))
        return None if data is None else msgspec.json.decode(data, type=type)

    def items(self, kind: str, type: type[_T]) -> dict[str, _T]:
        """All values of a kind, by key."""
        return {
            key: msgspec.json.decode(data, type=type)
            for (of, key), data in sorted(self._values.items())
            if of == kind
        }

    def put(self, kind: str, key: str, value: Any) -> None:
        """Set the value of a key: a msgspec struct, or what JSON has."""
        self._touch((kind, key))
        self._values[kind, key] = msgspec.json.encode(value)

    def delete(self, kind: str, key: str) -> None:
        """Forget a key; one that is not there is passed over."""
        self._touch((kind, key))
        self._values.pop((kind, key), None)

    def restore(self, kind: str, key: str, data: bytes) -> None:
        """Set what was written down."""
        self._values[kind, key] = data

    def changes(self) -> dict[Key, bytes | None]:
        """What became of the keys that changed since the last `settle`; None where they are gone."""
        return {key: self._values.get(key) for key in self._before}

    def settle(self) -> None:
        """Let the changes stand."""
        self._before.clear()

    def undo(self) -> None:
        """Take back what changed since the last `settle`."""
        for key, before in self._before.items():
            if before is None:
                self._values.pop(key, None)
            else:
                self._values[key] = before
        self.settle()

    def _touch(self, key: Key) -> None:
        self._before.setdefault(key, self._values.get(key))
