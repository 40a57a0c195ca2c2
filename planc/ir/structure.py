"""How Python arranges a plan's inputs and outputs: a tree of tuples, lists and dicts over leaves.

A leaf is a tensor of the flat input or output list; a ``Fixed`` is a Python value that was fixed at capture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Leaf:
    """The next tensor of the flat list."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """A Python value (number, bool, string or None) that the plan was captured with and cannot vary."""

    value: int | float | bool | str | None


@dataclass(frozen=True, slots=True)
class Sequence:
    """A tuple or a list (``kind`` says which) of trees."""

    kind: str
    items: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Mapping:
    """A dict with string keys, in the order of the captured example."""

    keys: tuple[str, ...]
    items: tuple[Tree, ...]


Tree = Leaf | Fixed | Sequence | Mapping

TUPLE, LIST = "tuple", "list"


def leaf_paths(tree: Tree, prefix: str = "") -> Iterator[str]:
    """The path of each leaf in order: ``0``, ``1.x``, ``1.y.2``."""
    if isinstance(tree, Leaf):
        yield prefix
    elif isinstance(tree, (Sequence, Mapping)):
        keys = tree.keys if isinstance(tree, Mapping) else [str(i) for i in range(len(tree.items))]
        for key, item in zip(keys, tree.items, strict=True):
            yield from leaf_paths(item, f"{prefix}.{key}" if prefix else key)


def count_leaves(tree: Tree) -> int:
    """How many tensors the tree takes."""
    return sum(1 for _ in leaf_paths(tree))


def flat(count: int) -> Sequence:
    """The structure of ``count`` plain positional tensors."""
    return Sequence(TUPLE, (Leaf(),) * count)
