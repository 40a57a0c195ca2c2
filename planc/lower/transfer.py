"""Tensors between the machine's memory and a CUDA device, through pinned memory where that pays.

A copy from or to ordinary memory waits for all that its stream was given before it. One from or to pinned
memory is queued behind that, and torch lends pinned memory to nobody else before such copies are done. Other
devices get torch's own copies. Knows no plans.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

SMALL = 2**16
"""Bytes of the smallest tensor that goes to a device through pinned memory: that copy takes time too."""
PINNED = 2**28
"""Bytes that one move pins at most: torch keeps pinned memory for good, and the whole machine lacks it."""
_FAR = "cuda"
_CURRENT = torch.device("cuda")


def to_device(tensor: torch.Tensor, device: torch.device, *, copy: bool = False) -> torch.Tensor:
    """The tensor on a device: itself where it is there already, unless a copy is asked for.

    What was brought to CUDA is to be used on the stream that was current then, as the results of runs are;
    `wait` before others may. Gradients do not flow back through it.
    """
    if tensor.device == device:
        return tensor.clone() if copy else tensor
    if device.type == _FAR and tensor.is_cpu and SMALL <= tensor.nbytes <= PINNED and not tensor.is_pinned():
        source = tensor.detach()
        staged = _pinned(source)
        if staged is not None:
            return staged.copy_(source).to(device, non_blocking=True)
    # The caller may write to a tensor that was pinned already: a copy of it must be done on return.
    return tensor.to(device, copy=copy)


def to_host(tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """The tensors in the machine's memory, after one wait for all. Those that are there are themselves.

    What was brought is in row-major order, and without autograd.
    """
    if all(tensor.is_cpu for tensor in tensors):
        return tensors
    out: list[torch.Tensor] = []
    devices: set[torch.device] = set()
    room = PINNED
    for tensor in tensors:
        if tensor.is_cpu:
            out.append(tensor)
            continue
        source = tensor.detach().contiguous()  # in other orders torch copies through memory of its own
        staged = _pinned(source) if tensor.device.type == _FAR and tensor.nbytes <= room else None
        if staged is None:
            out.append(source.cpu())
            continue
        out.append(staged.copy_(source, non_blocking=True))
        devices.add(tensor.device)
        room -= tensor.nbytes
    for device in devices:
        wait(device)
    return out


def wait(device: torch.device) -> None:
    """Wait until a CUDA device has done what its current stream was given. No other is waited for."""
    if device.type == _FAR:
        torch.cuda.current_stream(device).synchronize()


def numbered(device: torch.device | str) -> torch.device:
    """The device as tensors that are there name it: ``"cuda"`` is the current one."""
    place = device if isinstance(device, torch.device) else torch.device(device)
    return torch.device("cuda", torch.cuda.current_device()) if place == _CURRENT else place


def _pinned(tensor: torch.Tensor) -> torch.Tensor | None:
    """Pinned memory for a copy of a tensor, in the order of its own; None where the machine gives no more."""
    try:
        return torch.empty_like(tensor, device="cpu", pin_memory=True)
    except RuntimeError:
        return None


__all__ = ["PINNED", "SMALL", "numbered", "to_device", "to_host", "wait"]
