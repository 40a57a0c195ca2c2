"""Check concrete tensors against a plan's inputs and bind its named dims. Moves no data.

The rules for types alone are `bind` of `planc.ir.binding`, offered here too: it is what one call needs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from planc.errors import InputError
from planc.ir import Graph, TensorType, type_of
from planc.ir.binding import bind, check_range, describe

__all__ = ["bind", "bind_tensors", "check_range"]


def bind_tensors(graph: Graph, values: Sequence[torch.Tensor]) -> dict[str, int]:
    """As `bind`, from the tensors themselves.

    Raises:
        InputError: as `bind`; or an input is no tensor, or of a dtype that plans do not have.
    """
    types: list[TensorType] = []
    for i, value in enumerate(values):
        port = graph.inputs[i] if i < len(graph.inputs) else None
        where = f"plan {graph.name!r}: input " + (describe(port) if port else str(i))
        wants = f" wants {port.value.type}," if port else ""
        if not isinstance(value, torch.Tensor):
            raise InputError(f"{where}{wants} got {type(value).__name__}")
        got = type_of(value)
        if got is None:
            raise InputError(f"{where}{wants} got dtype {value.dtype}, which plans do not have")
        types.append(got)
    return bind(graph, types)
