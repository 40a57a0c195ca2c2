"""The arguments of a torch call taken apart: its tensors, and a key of all else.

Knows no ops and no workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from planc.errors import InputError
from planc.ir import TensorType, type_of
from runtime.remote.tensor_type import HasType


def take_apart(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[list[Any], Any]:
    """The tensors among the arguments, in order, and a hashable key of the whole call but their elements.

    Numbers keep their types in the key: 1, 1.0 and True differ.

    Raises:
        InputError: an argument that no operation takes, or a tensor whose dtype no plan has.
    """
    tensors: list[Any] = []
    key = _key(args, tensors)
    if kwargs:
        return tensors, (key, *((name, _key(value, tensors)) for name, value in kwargs.items()))
    return tensors, key


def fill(value: Any, tensors: Iterable[Any]) -> Any:
    """The arguments with these tensors in place of theirs; an iterator goes on where it stopped."""
    return _put(value, iter(tensors))


def type_of_operand(x: HasType | torch.Tensor) -> TensorType:
    """The type of a remote or local tensor.

    Raises:
        InputError: its dtype is one that no plan has.
    """
    if not isinstance(x, torch.Tensor):
        return x.tensor_type
    found = type_of(x)
    if found is None:
        raise InputError(f"a tensor of dtype {x.dtype} cannot be sent to a worker")
    return found


def _key(value: Any, tensors: list[Any]) -> Any:
    kind = type(value)
    make = _KEYS.get(kind)
    if make is not None:
        return make(value, tensors)
    if isinstance(value, HasType):
        tensors.append(value)
        return value.tensor_type
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return "local", type_of_operand(value)
    if isinstance(value, (tuple, list)):
        return (kind, *(_key(item, tensors) for item in value))
    try:
        hash(value)
    except TypeError:
        raise InputError(
            f"a {kind.__name__} cannot be an argument beside a remote tensor: use numbers, tensors, and "
            "tuples "
            "and lists of them"
        ) from None
    return kind, value


def _put(value: Any, tensors: Any) -> Any:
    if isinstance(value, (HasType, torch.Tensor)):
        return next(tensors)
    if isinstance(value, torch.Size):
        return value
    if isinstance(value, (tuple, list)):
        return type(value)(_put(item, tensors) for item in value)
    if isinstance(value, dict):
        return {name: _put(item, tensors) for name, item in value.items()}
    return value


# A float by its text: 0.0 and -0.0 are equal, but not the same argument.
_KEYS: dict[type, Callable[[Any, list[Any]], Any]] = {
    int: lambda value, _: value,
    bool: lambda value, _: (bool, value),
    float: lambda value, _: (float, repr(value)),
    str: lambda value, _: (str, value),
    type(None): lambda value, _: None,
    tuple: lambda value, tensors: (tuple, *(_key(item, tensors) for item in value)),
    list: lambda value, tensors: (list, *(_key(item, tensors) for item in value)),
    slice: lambda value, _: (slice, value.start, value.stop, value.step),
}


__all__ = ["fill", "take_apart", "type_of_operand"]
