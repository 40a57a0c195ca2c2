"""The weighted mean of states: what federated averaging makes of its workers' models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from planc.errors import InputError

State = Mapping[str, torch.Tensor]


def weighted_mean(states: Sequence[State], weights: Sequence[float]) -> dict[str, torch.Tensor]:
    """sum(weight * state) / sum(weights), tensor by tensor, summed in the order given.

    Of McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data (2017),
    algorithm 1. Integers (counters) are rounded. The mean of one state is that state, exactly.

    Raises:
        InputError: no states, a weight that is not positive, or states with different paths, shapes or
        dtypes.
    """
    check_states(states, weights)
    first = states[0]
    if len(states) == 1:
        return {path: tensor.clone() for path, tensor in first.items()}
    total = float(sum(weights))
    out: dict[str, torch.Tensor] = {}
    for path, tensor in first.items():
        mean = torch.zeros(tensor.shape, dtype=torch.float64)
        for state, weight in zip(states, weights, strict=True):
            mean.add_(state[path].to(torch.float64), alpha=weight / total)
        out[path] = mean.to(tensor.dtype) if tensor.is_floating_point() else mean.round().to(tensor.dtype)
    return out


def check_states(states: Sequence[State], weights: Sequence[float]) -> None:
    """Raise unless there are states, of one form, and a weight above 0 for each.

    Raises:
        InputError: no states, a weight that is not positive, or states with different paths, shapes or
        dtypes.
    """
    if not states or len(states) != len(weights):
        raise InputError(
            f"expected a weight for each of at least one state, got {len(weights)} for {len(states)}"
        )
    if any(not w > 0 for w in weights):
        raise InputError(f"weights must be positive, got {list(weights)}")
    first = states[0]
    for state in states[1:]:
        if {k: (v.shape, v.dtype) for k, v in state.items()} != {
            k: (v.shape, v.dtype) for k, v in first.items()
        }:
            raise InputError("states to average must have the same paths, shapes and dtypes")
