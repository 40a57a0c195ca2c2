"""Python arguments and results to flat lists of tensors and a structure, and back: tuples, lists, dicts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from planc.errors import CaptureError, InputError
from planc.ir.structure import LIST, TUPLE, Fixed, Leaf, Mapping, Sequence, Tree


def flatten(value: Any, path: str = "") -> tuple[Tree, list[Any]]:
    """The structure of ``value`` and its leaves (tensors, or whatever `Leaf` stands for), in order.

    Raises:
        CaptureError: a container or value of a kind that a plan cannot take.
    """
    if isinstance(value, (tuple, list)):
        if hasattr(value, "_fields"):
            raise CaptureError(f"{_at(path)}named tuples are not supported; pass a plain tuple or a dict")
        kind = LIST if isinstance(value, list) else TUPLE
        parts = [flatten(item, _join(path, str(i))) for i, item in enumerate(value)]
        return Sequence(kind, tuple(t for t, _ in parts)), [x for _, xs in parts for x in xs]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise CaptureError(f"{_at(path)}a dict needs string keys, got {key!r}")
        parts = [flatten(item, _join(path, key)) for key, item in value.items()]
        return Mapping(tuple(value), tuple(t for t, _ in parts)), [x for _, xs in parts for x in xs]
    if value is None or isinstance(value, (bool, int, float, str)):
        return Fixed(value), []
    if isinstance(value, torch.Tensor):
        return Leaf(), [value]
    raise CaptureError(
        f"{_at(path)}a {type(value).__name__} cannot be part of a plan's inputs or outputs: "
        "use tensors, numbers, strings, None, and tuples, lists and dicts of them"
    )


def unflatten(tree: Tree, leaves: Iterator[Any]) -> Any:
    """The Python value of this structure, its leaves taken from ``leaves`` in order."""
    if isinstance(tree, Leaf):
        return next(leaves)
    if isinstance(tree, Fixed):
        return tree.value
    items = [unflatten(item, leaves) for item in tree.items]
    if isinstance(tree, Mapping):
        return dict(zip(tree.keys, items, strict=True))
    return items if tree.kind == LIST else tuple(items)


def match(tree: Tree, value: Any, path: str) -> Iterator[Any]:
    """The leaves of ``value``, checked to have the structure ``tree``.

    A leaf may be anything (a tensor, a remote handle); what it must be is the caller's to check.

    Raises:
        InputError: another count, type, length, key or fixed value; names path, expected and actual.
    """
    if isinstance(tree, Leaf):
        yield value
    elif isinstance(tree, Fixed):
        if type(value) is not type(tree.value) or repr(value) != repr(tree.value):
            raise InputError(
                f"input {path} was fixed to {tree.value!r} when the plan was captured, got {value!r}; "
                "capture again with this value, or pass it as a tensor so that it may vary"
            )
    elif isinstance(tree, Mapping):
        if not isinstance(value, dict):
            raise InputError(f"input {path} must be a dict with keys {list(tree.keys)}, got {_kind(value)}")
        if set(value) != set(tree.keys):
            raise InputError(f"input {path} must have the keys {list(tree.keys)}, got {list(value)}")
        for key, item in zip(tree.keys, tree.items, strict=True):
            yield from match(item, value[key], f"{path}[{key!r}]")
    else:
        expected = list if tree.kind == LIST else tuple
        if not isinstance(value, expected):
            raise InputError(f"input {path} must be a {tree.kind} of {len(tree.items)}, got {_kind(value)}")
        if len(value) != len(tree.items):
            raise InputError(f"input {path} must have {len(tree.items)} entries, got {len(value)}")
        for i, (item, part) in enumerate(zip(tree.items, value, strict=True)):
            yield from match(item, part, f"{path}[{i}]")


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}" + (
        f" of {len(value)}" if isinstance(value, (tuple, list, dict)) else ""
    )


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _at(path: str) -> str:
    return f"{path}: " if path else ""
