"""The policy file: TOML to a `Policy`. Strict: what it does not know is an error, never passed over.

docs/network.md has what each key means, and examples/policy.toml is one to start from.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from planc.text.suggest import nearest
from runtime.access.units import parse_bytes, parse_seconds
from runtime.errors import PolicyError
from runtime.policy import ALL, NETWORK_RIGHTS, NOTHING, Needs, Policy, Quota, Rights, Selection
from runtime.toml_places import At, dotted, line_of, listed, shown

_MAX_BYTES = 2**20
_MAX_NAME = 256
"""Characters of a client's name, and of a tag: what messages can carry."""
_UNLIMITED = "unlimited"


def load_policy(path: Path) -> Policy:
    """The policy in a file.

    Raises:
        PolicyError: it cannot be read, or is not a policy; names the file, the line and the key.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PolicyError(f"{path}: the policy file cannot be read: {error.strerror}") from None
    if len(data) > _MAX_BYTES:
        raise PolicyError(f"{path}: the policy file is larger than {_MAX_BYTES} bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise PolicyError(f"{path}: the policy file is not text in UTF-8") from None
    return parse_policy(text, str(path))


def parse_policy(text: str, name: str = "policy.toml") -> Policy:
    """The policy that a text says; ``name`` begins the text of errors.

    Raises:
        PolicyError: it is none.
    """
    return _Reader(text, name).policy()


class _Reader:
    """One file while it is read."""

    def __init__(self, text: str, name: str) -> None:
        self._text = text
        self._name = name

    def policy(self) -> Policy:
        try:
            data = tomllib.loads(self._text)
        except (ValueError, RecursionError) as error:  # also numbers and nesting beyond Python's limits
            raise PolicyError(f"{self._name}: this is not TOML: {error}") from None
        self._known((), data, ("worker", "default", "client"))
        worker = self._table(("worker",), data.get("worker", {}), ("peers", "deny"))
        default = self._rights(("default",), data.get("default", {}), NETWORK_RIGHTS)
        clients = self._table(("client",), data.get("client", {}), None)
        denied = self._names(("worker", "deny"), worker.get("deny", []))
        policy = Policy(
            peers=self._names(("worker", "peers"), worker.get("peers", [])),
            default=default,
            clients={c: self._client(c, table, default) for c, table in clients.items()},
            denied=denied,
        )
        self._check_moves(policy, clients, data.get("default", {}))
        for client in denied & clients.keys():
            raise self._error(("client", client), "a client that worker.deny names has no use for rights")
        return policy

    def _client(self, name: str, data: Any, default: Rights) -> Rights:
        if not 0 < len(name) <= _MAX_NAME:
            raise self._error(("client", name), f"a name has 1 to {_MAX_NAME} characters")
        return self._rights(("client", name), data, default)

    def _rights(self, at: At, data: Any, default: Rights) -> Rights:
        """The rights of a section; what it does not say is as in ``default``."""
        table = self._table(at, data, (*_RIGHTS, "quota"))
        changed: dict[str, Any] = {}
        for key, value in table.items():
            if key == "quota":
                changed["quota"] = self._quota((*at, key), value, default.quota)
            else:
                field, read = _RIGHTS[key]
                changed[field] = read(self, (*at, key), value)
        return replace(default, **changed)

    def _quota(self, at: At, data: Any, default: Quota) -> Quota:
        table = self._table(at, data, tuple(_QUOTAS))
        return replace(default, **{key: self._amount((*at, key), value) for key, value in table.items()})

    def _amount(self, at: At, value: Any) -> float | None:
        if value == _UNLIMITED:
            return None
        parse = _QUOTAS[at[-1]]
        if parse is None:
            if type(value) is not int or not 0 <= value < 2**53:
                raise self._error(at, f"expected a whole number, or {_UNLIMITED!r}, got {shown(value)}")
            return value
        if not isinstance(value, str):
            example = "2 GiB" if parse is parse_bytes else "10 min"
            raise self._error(
                at, f"expected a text with a unit such as {example!r}, or {_UNLIMITED!r}, got {shown(value)}"
            )
        try:
            return parse(value)
        except ValueError as error:
            raise self._error(at, str(error)) from None

    def read_selection(self, at: At, value: Any) -> Selection:
        if value is True:
            return ALL
        if value is False:
            return NOTHING
        if not isinstance(value, list):
            raise self._error(at, f"expected true, false or a list of tags, got {shown(value)}")
        return Selection(tags=tuple(self._strings(at, value, "tags")))

    def read_bool(self, at: At, value: Any) -> bool:
        if not isinstance(value, bool):
            raise self._error(at, f"expected true or false, got {shown(value)}")
        return value

    def read_move(self, at: At, value: Any) -> frozenset[str] | None:
        if isinstance(value, bool):
            return None if value else frozenset()
        return self._names(at, value)

    def read_needs(self, at: At, value: Any) -> Needs:
        known = [needs.value for needs in Needs]
        if value not in known:
            hint = nearest(value, known) if isinstance(value, str) else ""
            raise self._error(
                at, f"expected {listed(known)}, got {shown(value)}{f': {hint}' if hint else ''}"
            )
        return Needs(value)

    def _names(self, at: At, value: Any) -> frozenset[str]:
        if not isinstance(value, list):
            raise self._error(at, f"expected a list of names, got {shown(value)}")
        return frozenset(self._strings(at, value, "names"))

    def _strings(self, at: At, value: Iterable[Any], what: str) -> list[str]:
        out: list[str] = []
        for item in value:
            if not isinstance(item, str) or not 0 < len(item) <= _MAX_NAME:
                raise self._error(
                    at, f"expected {what} of 1 to {_MAX_NAME} characters, got {shown(item)} among them"
                )
            out.append(item)
        return out

    def _table(self, at: At, value: Any, known: tuple[str, ...] | None) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise self._error(at, f"expected a section [{dotted(at)}], got {shown(value)}")
        if known is not None:
            self._known(at, value, known)
        return value

    def _known(self, at: At, table: Mapping[str, Any], known: tuple[str, ...]) -> None:
        for key in table:
            if key not in known:
                hint = nearest(key, known, f"known are {listed(known)}")
                raise self._error((*at, key), f"this key is not known: {hint}")

    def _check_moves(self, policy: Policy, clients: Mapping[str, Any], default: Mapping[str, Any]) -> None:
        """A right to send objects where the worker sends none would be a misunderstanding."""
        sections: list[tuple[At, Mapping[str, Any], Rights]] = [(("default",), default, policy.default)]
        sections += [(("client", name), clients[name], rights) for name, rights in policy.clients.items()]
        for at, table, rights in sections:
            unknown = sorted((rights.move or frozenset()) - (policy.peers or frozenset()))
            if "move" in table and unknown:
                raise self._error((*at, "move"), f"{listed(unknown)} must be among worker.peers too")

    def _error(self, at: At, text: str) -> PolicyError:
        line = line_of(self._text, at)
        return PolicyError(f"{self._name}{f', line {line}' if line else ''}: {dotted(at)}: {text}")


_RIGHTS: dict[str, tuple[str, Callable[[_Reader, At, Any], Any]]] = {
    "search": ("search", _Reader.read_selection),
    "use": ("use", _Reader.read_selection),
    "run": ("run", _Reader.read_selection),
    "fetch": ("fetch", _Reader.read_selection),
    "send": ("send", _Reader.read_bool),
    "move": ("move", _Reader.read_move),
    "approval": ("needs", _Reader.read_needs),
}
_QUOTAS: dict[str, Callable[[str], float] | None] = {
    "bytes": parse_bytes,
    "seconds": parse_seconds,
    "run_seconds": parse_seconds,
    "message_bytes": parse_bytes,
    "plan_nodes": None,
    "concurrent_runs": None,
    "plans": None,
}


__all__ = ["load_policy", "parse_policy"]
