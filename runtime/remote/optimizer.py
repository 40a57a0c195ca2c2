"""`RemoteOptimizer`: a torch.optim optimizer whose state stays at the workers, kept apart for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn, optim

from planc.capture.optimizers import Update, update_of
from planc.errors import InputError
from planc.ir import Attribute, DType
from runtime.messages import ElementType, Numbers, Step
from runtime.remote.module import RemoteModule


class RemoteOptimizer:
    """Updates a `RemoteModule` where it is. A step is one message, and so is ``zero_grad``.

    The state of each worker (momenta, moments, counts) is made there and never leaves it, so that one
    optimizer serves a model that travels between workers.

    >>> opt = RemoteOptimizer(model, torch.optim.Adam, lr=0.1)

    Args:
        model: the module to update.
        cls: ``torch.optim.SGD``, ``Adam`` or ``AdamW``.
        **options: the optimizer's own, such as ``lr``.

    Raises:
        CaptureError: the optimizer's class has no update op.
    """

    def __init__(self, model: RemoteModule, cls: type[optim.Optimizer], **options: Any) -> None:
        self._model = model
        # torch's own class checks the options; its parameter stands for the model's.
        stand_in: Any = cls([nn.Parameter(torch.zeros(1))], **options)
        self._optimizer: optim.Optimizer = stand_in
        update_of(self._optimizer, self._group)
        self._state: dict[str, tuple[Any, list[list[int]]]] = {}

    @property
    def _group(self) -> dict[str, Any]:
        return self._optimizer.param_groups[0]

    @property
    def lr(self) -> float:
        """The learning rate; may be set."""
        return self._group["lr"]

    @lr.setter
    def lr(self, value: float) -> None:
        self._group["lr"] = value

    def zero_grad(self) -> None:
        """Forget the gradients of the model's parameters. One message."""
        self._model.zero_grad()

    def step(self) -> None:
        """Update the parameters that have a gradient, where they are. One message.

        Raises:
            InputError: the model is not at a worker.
        """
        worker = self._model.location
        if worker is None:
            raise InputError(
                "the model is not at a worker: send it first, or use torch.optim for a local model"
            )
        update: Update = update_of(self._optimizer, self._group)
        params = [p for p in self._model.parameters() if p.requires_grad]
        known, state = self._state.get(worker.id, (None, []))
        if known is not worker:
            state = [[] if slot is None else [worker.new_id() for _ in params] for slot in update.slots]
            self._state[worker.id] = worker, state
        attrs = {name: _attribute(value) for name, value in update.attrs.items()}
        worker.request(
            Step(update.op, attrs, update.lr, tuple(p.id for p in params), tuple(tuple(ids) for ids in state))
        )

    def forget(self) -> None:
        """Free the state at all workers, with the next message to each."""
        for worker, state in self._state.values():
            for ids in state:
                for id in ids:
                    worker.release(id)
        self._state = {}


def _attribute(value: Attribute) -> Any:
    if isinstance(value, DType):
        return ElementType(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return Numbers(tuple(value))  # pyright: ignore[reportArgumentType] -- options are plain numbers
    return value
