"""Server optimizers: how the weighted mean of the clients' models becomes the next model, as a plan.

Makes and runs those plans, here. Knows no rounds, and not how the mean came about.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from planc.errors import InputError
from planc.ir import type_of
from runtime.federated.numbers import is_number, is_whole
from runtime.federated.server_update import Model, Rule, ServerUpdate, server_update


class Server(Protocol):
    """What a federation needs of a server optimizer."""

    def plan(self, model: Model, parameters: Collection[str]) -> ServerUpdate:
        """Its update for a model.

        Args:
            model: only paths, shapes and dtypes matter.
            parameters: the paths that the rule updates, all of floating point; the others (running
                statistics, counters) become the plain mean.
        """
        ...


class _ByRule(ABC):
    """A server optimizer whose update is one rule for every parameter."""

    @abstractmethod
    def _rule(self) -> Rule | None:
        """The rule; None for the mean itself."""

    def plan(self, model: Model, parameters: Collection[str]) -> ServerUpdate:
        """Its update for a model, see `Server.plan`.

        Raises:
            InputError: there is no model, a parameter is not in it or not of floating point, or the model
            has a tensor where the server keeps its own state (``<path>.momentum``).
        """
        _check_parameters(model, parameters)
        return server_update(model, frozenset(parameters), self._rule())


@dataclass(frozen=True)
class FedAvg(_ByRule):
    """Federated averaging: ``x + lr * delta``, where ``delta`` is the clients' mean less the model.

    With ``lr=1`` the new model is exactly the mean, bit for bit: McMahan et al., Communication-Efficient
    Learning of Deep Networks from Decentralized Data (2017), algorithm 1. Another rate is the server's of
    Reddi et al. (2021), algorithm 1, with SGD as the server's optimizer.

    Args:
        lr: the server's learning rate, above 0.
    """

    lr: float = 1.0

    def __post_init__(self) -> None:
        _positive(self, "lr", self.lr)

    def _rule(self) -> Rule | None:
        return None if self.lr == 1 else Rule("fedavg", f"x + {float(self.lr)!r} * delta")


@dataclass(frozen=True)
class FedAvgM(_ByRule):
    """Averaging with momentum at the server.

    ``v = momentum * v + delta; x = x + lr * v``, ``v`` first 0: Hsu, Qi & Brown, Measuring the Effects of
    Non-Identical Data Distribution for Federated Visual Classification (2019), section 4. They write the
    update as ``w - v`` and ``Delta w`` as the model less the clients' mean; both signs are turned here. Their
    rate is 1. The momentum is not Nesterov's.

    Args:
        lr: the server's learning rate, above 0.
        momentum: from 0 to below 1.
    """

    lr: float = 1.0
    momentum: float = 0.9

    def __post_init__(self) -> None:
        _positive(self, "lr", self.lr)
        _decay(self, "momentum", self.momentum)

    def _rule(self) -> Rule:
        return Rule(
            "fedavgm",
            f"x + {float(self.lr)!r} * new_momentum",
            {"momentum": 0.0},
            f"new_momentum = {float(self.momentum)!r} * momentum + delta",
        )


@dataclass(frozen=True)
class _Adaptive(_ByRule):
    """Algorithm 2 of Reddi et al.: what its three forms have in common."""

    def _adaptive(self, name: str, lr: float, beta1: float, tau: float, second_moment: str) -> Rule:
        return Rule(
            name,
            f"x + {float(lr)!r} * new_momentum / (sqrt(new_second_moment) + {float(tau)!r})",
            {"momentum": 0.0, "second_moment": float(tau) ** 2},
            f"""square = delta * delta
              new_momentum = {float(beta1)!r} * momentum + {1 - float(beta1)!r} * delta
              new_second_moment = {second_moment}""",
        )


@dataclass(frozen=True)
class FedAdagrad(_Adaptive):
    """Adagrad at the server.

    ``m = beta1 * m + (1 - beta1) * delta; v = v + delta**2; x = x + lr * m / (sqrt(v) + tau)``, ``m`` first 0
    and ``v`` first ``tau**2``: Reddi et al., Adaptive Federated Optimization (2021), algorithm 2. Their
    ``Delta`` is the clients' mean less the model, as here. There is no correction of bias.

    Args:
        lr: the server's learning rate, above 0.
        beta1: decay of the first moment, from 0 to below 1; 0 in their experiments.
        tau: how adaptive: the smaller the more, above 0.
    """

    lr: float = 0.1
    beta1: float = 0.0
    tau: float = 1e-3

    def __post_init__(self) -> None:
        _positive(self, "lr", self.lr)
        _decay(self, "beta1", self.beta1)
        _positive(self, "tau", self.tau)

    def _rule(self) -> Rule:
        return self._adaptive("fedadagrad", self.lr, self.beta1, self.tau, "second_moment + square")


@dataclass(frozen=True)
class _Decaying(_Adaptive):
    """What Adam and Yogi share: moments that decay."""

    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        _positive(self, "lr", self.lr)
        _decay(self, "beta1", self.beta1)
        _decay(self, "beta2", self.beta2)
        _positive(self, "tau", self.tau)


@dataclass(frozen=True)
class FedAdam(_Decaying):
    """Adam at the server.

    As `FedAdagrad` with ``v = beta2 * v + (1 - beta2) * delta**2``: Reddi et al., Adaptive Federated
    Optimization (2021), algorithm 2. There is no correction of bias.

    Args:
        lr: the server's learning rate, above 0.
        beta1: decay of the first moment, from 0 to below 1.
        beta2: decay of the second moment, from 0 to below 1.
        tau: how adaptive: the smaller the more, above 0.
    """

    def _rule(self) -> Rule:
        beta2 = float(self.beta2)
        moment = f"{beta2!r} * second_moment + {1 - beta2!r} * square"
        return self._adaptive("fedadam", self.lr, self.beta1, self.tau, moment)


@dataclass(frozen=True)
class FedYogi(_Decaying):
    """Yogi at the server.

    As `FedAdam` with ``v = v - (1 - beta2) * delta**2 * sign(v - delta**2)``, which moves by ``delta**2`` at
    most however large ``v`` is: Reddi et al., Adaptive Federated Optimization (2021), algorithm 2.

    Args:
        lr: the server's learning rate, above 0.
        beta1: decay of the first moment, from 0 to below 1.
        beta2: of the second moment, from 0 to below 1.
        tau: how adaptive: the smaller the more, above 0.
    """

    def _rule(self) -> Rule:
        moment = f"second_moment - {1 - float(self.beta2)!r} * square * sign(second_moment - square)"
        return self._adaptive("fedyogi", self.lr, self.beta1, self.tau, moment)


def staleness_weight(staleness: int, exponent: float = 0.5) -> float:
    """What an update counts that was begun ``staleness`` versions of the model ago: ``(1 + s) ** -exponent``.

    The polynomial weight of Xie, Koyejo & Gupta, Asynchronous Federated Optimization (2019), section 5.2;
    with the exponent 1/2 that of FedBuff: Nguyen et al., Federated Learning with Buffered Asynchronous
    Aggregation (2022).

    Raises:
        InputError: a number is below 0.
    """
    if not (is_whole(staleness) and staleness >= 0):
        raise InputError(f"staleness is a count of versions of the model, at least 0, got {staleness!r}")
    if not (is_number(exponent) and exponent >= 0):
        raise InputError(f"the exponent of a staleness weight must be at least 0, got {exponent!r}")
    return float((1 + staleness) ** -exponent)


def _check_parameters(model: Model, parameters: Collection[str]) -> None:
    if not model:
        raise InputError("a server's update needs a model of at least one tensor, got none")
    for path in parameters:
        if path not in model:
            raise InputError(f"the model has no parameter {path!r}; it has {sorted(model)}")
        if not model[path].is_floating_point():
            raise InputError(
                f"the server's rule is for parameters of floating point, but {path!r} is "
                f"{type_of(model[path])}; leave it out and it becomes the mean"
            )


def _positive(server: object, name: str, value: float) -> None:
    if not (is_number(value) and value > 0):
        raise InputError(f"{type(server).__name__}: {name} must be a finite number above 0, got {value!r}")


def _decay(server: object, name: str, value: float) -> None:
    if not (is_number(value) and 0 <= value < 1):
        raise InputError(f"{type(server).__name__}: {name} must be from 0 to below 1, got {value!r}")


__all__ = [
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedYogi",
    "Model",
    "Server",
    "ServerUpdate",
    "staleness_weight",
]
