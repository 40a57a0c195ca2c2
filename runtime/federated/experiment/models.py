"""The networks that an experiment can name, and the plans that train and judge them. Knows no workers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

import planc
from planc.errors import InputError
from runtime.demo.network import make_network
from runtime.federated.experiment import sections as S
from runtime.federated.proximal import anchored, fedprox
from runtime.federated.schedules import Schedule

Loss = Literal["cross_entropy", "mse"]
Metrics = Callable[[Tensor, Tensor], dict[str, Tensor]]

_EXAMPLE_ROWS = 7
"""A size that no layer has, so that the batch dim is fixed by nothing by accident."""
_IMAGE = (1, 28, 28)


@dataclass(frozen=True)
class Kind:
    """What one example is.

    Attributes:
        inputs: the shape of its inputs.
        target: the shape of its target.
        classes: how many classes there are, where targets are classes; 0 where that is not known.
        dtypes: of inputs and target.
    """

    inputs: tuple[int, ...]
    target: tuple[int, ...]
    classes: int | None
    dtypes: tuple[torch.dtype, torch.dtype]

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> Kind:
        """That of data that is here, one row an example."""
        whole = not (y.is_floating_point() or y.is_complex())
        classes = int(y.max()) + 1 if whole and y.numel() else 0
        return cls(tuple(x.shape[1:]), tuple(y.shape[1:]), classes if whole else None, (x.dtype, y.dtype))

    def examples(self) -> tuple[Tensor, Tensor]:
        """A batch of such examples, all zeros."""
        x, y = (
            torch.zeros(_EXAMPLE_ROWS, *shape, dtype=dtype)
            for shape, dtype in zip((self.inputs, self.target), self.dtypes, strict=True)
        )
        return x, y


def make(model: S.Linear | S.Mlp | S.Cnn, kind: Kind, seed: int) -> nn.Module:
    """A fresh network; the same seed gives the same one. Leaves torch's own generator as it was.

    Raises:
        InputError: the data does not fit the network, or how many outputs are wanted is not known.
    """
    inputs, outputs = math.prod(kind.inputs), _outputs(model, kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        match model:
            case S.Cnn():
                if kind.inputs != _IMAGE:
                    raise InputError(f"cnn takes images of shape {list(_IMAGE)}, got {list(kind.inputs)}")
                if outputs != 10:
                    raise InputError(f"cnn has 10 outputs, and {outputs} are wanted: take mlp or linear")
                return make_network(seed)
            case S.Mlp():
                sizes = [inputs, *model.hidden, outputs]
            case S.Linear():
                sizes = [inputs, outputs]
        layers: list[nn.Module] = [nn.Flatten()]
        for index, (before, after) in enumerate(pairwise(sizes)):
            layers += [nn.ReLU()] if index else []
            layers.append(nn.Linear(before, after))
        return nn.Sequential(*layers)


def metrics(model: S.Linear | S.Mlp | S.Cnn, kind: Kind) -> Metrics:
    """What is measured of outputs and targets: the loss first, and for classes the share that is right.

    Raises:
        InputError: the loss does not fit the targets.
    """
    loss = model.loss or ("mse" if kind.classes is None else "cross_entropy")
    if loss == "mse":
        if kind.classes is not None:
            raise InputError("the loss mse is for targets that are numbers, and these are whole: classes")
        return _mse
    if kind.classes is None:
        raise InputError("the loss cross_entropy is for targets that are whole numbers: classes")
    if kind.target:
        raise InputError(f"targets that are classes are one a row, got {list(kind.target)} a row")
    return _cross_entropy


def training(
    network: nn.Module, measure: Metrics, client: S.Client, kind: Kind, schedule: Schedule | None
) -> planc.Plan:
    """The plan of one client's round: so many epochs over its rows."""
    module, loss = fedprox(network, measure, client.mu) if client.mu else (network, measure)
    optimizer = _optimizer(network, client)
    step = planc.train_step(module, loss, optimizer, *kind.examples(), lr_input=schedule is not None)
    plan = planc.epoch(step, batch_size=client.batch_size, epochs=client.epochs)
    return anchored(plan) if client.mu else plan


def judging(network: nn.Module, measure: Metrics, client: S.Client, kind: Kind) -> planc.Plan:
    """The plan that measures the model on some rows. Its state has the paths of the plan that trains it."""
    scored = _Scored(network, measure, "module." if client.mu else "")
    was = network.training
    network.eval()
    try:
        return planc.trace(scored, *kind.examples(), name="evaluate")
    finally:
        network.train(was)


class _Scored(nn.Module):
    """A network and what is measured of it, with the network's own paths (or those that fedprox gives it)."""

    def __init__(self, network: nn.Module, measure: Metrics, prefix: str) -> None:
        super().__init__()
        self._run = (network,)  # not a child: its children are
        self._measure = measure
        if prefix:
            self.module = network
        else:
            for name, child in network.named_children():
                self.add_module(name, child)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return self._measure(self._run[0](x), y)


def _outputs(model: S.Linear | S.Mlp | S.Cnn, kind: Kind) -> int:
    if model.outputs is not None:
        if kind.classes is not None and model.outputs < kind.classes:
            raise InputError(f"the data has {kind.classes} classes, outputs is {model.outputs}")
        return model.outputs
    if kind.classes == 0:
        raise InputError("how many classes there are is not known here: give outputs")
    return math.prod(kind.target) if kind.classes is None else kind.classes


def _optimizer(network: nn.Module, client: S.Client) -> optim.Optimizer:
    common: Mapping[str, Any] = {"lr": client.lr, "weight_decay": client.weight_decay}
    match client:
        case S.Sgd():
            return optim.SGD(
                network.parameters(), **common, momentum=client.momentum, nesterov=client.nesterov
            )
        case S.Adam() | S.AdamW():
            cls = optim.Adam if isinstance(client, S.Adam) else optim.AdamW
            betas = (client.beta1, client.beta2)
            return cls(network.parameters(), **common, betas=betas, eps=client.eps)


def _cross_entropy(out: Tensor, y: Tensor) -> dict[str, Tensor]:
    # Of log probabilities, as the tutorial's network gives, it is the negative log likelihood all the same.
    right = (out.argmax(1) == y).to(out.dtype).mean()
    return {"loss": F.cross_entropy(out, y), "accuracy": right}


def _mse(out: Tensor, y: Tensor) -> dict[str, Tensor]:
    return {"loss": F.mse_loss(out, y.reshape(out.shape))}


__all__ = ["Kind", "Metrics", "judging", "make", "metrics", "training"]
