"""How and where code runs: gradients off and below autograd, where calls cost what they do in inference mode.

Unlike inference mode it makes ordinary tensors, so that what a run returns needs no copy. Knows no plans.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch

T = TypeVar("T")

_c: Any = torch._C  # pyright: ignore[reportPrivateUsage] -- what follows has no other name
"""The names of torch that have no public spelling."""
_below: Callable[[], AbstractContextManager[Any]] | None = getattr(_c, "_AutoDispatchBelowAutograd", None)
"""Where a version lacks it, having gradients off does."""


def ordinarily(run: Callable[..., T], values: Sequence[Any]) -> T:
    """``run(*values)`` without autograd; what it makes are ordinary tensors, wherever the caller is."""
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False):
            return ordinarily(run, values)
    before = torch.is_grad_enabled()
    _c._set_grad_enabled(False)  # what torch.no_grad does, at a tenth of its price
    try:
        if _below is None:
            return run(*values)
        with _below():
            return run(*values)
    finally:
        _c._set_grad_enabled(before)


def stream_of(device: torch.device) -> int:
    """What names the queue that the caller's work on a device goes to; on the CPU there is none."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


__all__ = ["ordinarily", "stream_of"]
