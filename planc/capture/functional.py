"""A module's code with tensors of ours in the place of its parameters and buffers.

Ours stay there until everything is done, not only the forward pass: a loss function may read the module's
parameters (weight decay), and backward may run a part of it again (checkpointing). No module is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from planc.errors import CaptureError

T = TypeVar("T")
_TABLES = ("_parameters", "_buffers", "_modules")


class _Running(nn.Module):
    """Calls what it is given while its one submodule has other tensors."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, body: Callable[[], Any]) -> Any:
        return body()


def with_state(module: nn.Module, state: Mapping[str, torch.Tensor], body: Callable[[], T]) -> T:
    """Run ``body`` while the module's parameters and buffers are those of ``state``, by path."""
    inside = {f"module.{path}": tensor for path, tensor in state.items()}
    with _unchanged(module):
        return torch.func.functional_call(_Running(module), inside, (body,), tie_weights=True)


@contextmanager
def _unchanged(module: nn.Module) -> Generator[None]:
    """Afterwards a module has the attributes that it had; what traced code leaves on it is no real tensor."""
    before = [
        (part, {name: dict(value) if name in _TABLES else value for name, value in vars(part).items()})
        for part in module.modules()
    ]
    try:
        yield
    finally:
        for part, attributes in before:
            vars(part).clear()
            vars(part).update(attributes)


def present_buffers(module: nn.Module, paths: Iterable[str]) -> dict[str, torch.Tensor]:
    """What a module's buffers of these paths are now, written in place or assigned anew.

    Raises:
        CaptureError: one is no tensor any more.
    """
    found = {path: attrgetter(path)(module) for path in paths}
    for path, tensor in found.items():
        if not isinstance(tensor, torch.Tensor):
            raise CaptureError(
                f"the code assigns {tensor!r} to the buffer {path!r}; a plan's state is tensors of one type: "
                "assign one like what it was"
            )
    return {path: tensor.detach() for path, tensor in found.items()}


def check_module(module: nn.Module) -> None:
    """Refuse modules whose code or parameters cannot be had.

    Raises:
        CaptureError: it is TorchScript or was compiled, or a lazy parameter has no shape yet.
    """
    for path, part in module.named_modules():
        where = f"the module's part {path!r}" if path else "the module"
        scripted = isinstance(part, torch.jit.ScriptModule)
        if scripted or type(part).__name__ == "OptimizedModule":
            made = "TorchScript" if scripted else "compiled by torch.compile"
            raise CaptureError(f"{where} is {made}, which cannot be traced; capture what it was made from")
    for path, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            raise CaptureError(f"{path} has no shape yet; run the module once on an example, then capture it")
