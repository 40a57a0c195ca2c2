"""Whether a federation can use what it is given: said at the start, not rounds later by an AttributeError.

Looks at kinds; the bounds of numbers are checked where they belong.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from reprlib import Repr
from typing import Any

from planc.errors import DataError, InputError
from runtime.federated.numbers import is_whole
from runtime.remote.handle import WorkerHandle

_USED: Mapping[str, tuple[tuple[str, ...], str]] = {
    "population": (("members", "lose"), "Population.split((x, y), clients=100, workers=workers)"),
    "server": (("plan",), "FedAdam(lr=0.01)"),
    "sampling": (("sample", "expected_size"), "Uniform(50)"),
    "mean": (("combine",), "Median()"),
    "client_lr": (("at",), "Constant(0.1)"),
    "evaluate": (("due", "at_centre"), "Evaluation(centre=plan, data=(x, y))"),
    "checkpoints": (("begin", "save"), 'Checkpoints("runs/first")'),
}
"""The methods of each argument that are called, and an example of one."""
_SEEDS = 2**64
_SHOWN = Repr()
_SHOWN.maxother = _SHOWN.maxstring = 80


def check_kinds(**given: object) -> None:
    """Refuse arguments of a federation that are classes, names or numbers where it calls methods.

    Raises:
        InputError: says what is wanted, and what came.
    """
    for name, value in given.items():
        if value is None and name != "population":
            continue
        methods, example = _USED[name]
        if isinstance(value, type):
            raise InputError(f"{name} takes an object, such as {example}; got the class {value.__name__}")
        for method in methods:
            if not callable(getattr(value, method, None)):
                raise InputError(
                    f"{name} takes an object with the method {method!r}, such as {example}; got "
                    f"{_SHOWN.repr(value)}"
                )


def check_lists(stop: Any, callbacks: Any) -> None:
    """Refuse rules and callbacks that are no lists of some.

    Raises:
        InputError: says what is wanted, and what came.
    """
    for rule in _all("stop", stop, 'rules, as in [Target("accuracy", 0.9)]'):
        if isinstance(rule, type) or not callable(getattr(rule, "why", None)):
            raise InputError(f"stop takes rules, such as AfterRounds(10); got {_SHOWN.repr(rule)}")
    for callback in _all("callbacks", callbacks, "functions of an event, as in [print]"):
        if not callable(callback):
            raise InputError(
                f"callbacks are called with each event; got {_SHOWN.repr(callback)}, which cannot be"
            )


def checked_seed(seed: Any) -> int:
    """A seed of a run.

    Raises:
        InputError: it is none.
    """
    if not (is_whole(seed) and 0 <= seed < _SEEDS):
        raise InputError(f"a seed is a whole number from 0 to below 2^64, got {seed!r}")
    return operator.index(seed)


def check_rounds(rounds: Any) -> None:
    """Refuse what is no number of rounds.

    Raises:
        InputError: says what came.
    """
    if not (is_whole(rounds) and rounds >= 0):
        raise InputError(f"rounds is a whole number from 0, those before a stop included; got {rounds!r}")


def checked_weights(weights: Any) -> tuple[float, ...]:
    """The weights of a population's clients.

    Raises:
        DataError: no clients, or a weight that is not above 0.
    """
    if isinstance(weights, str) or not isinstance(weights, Iterable):
        raise DataError(f"weights takes a list of numbers, one for each client; got {_SHOWN.repr(weights)}")
    checked = tuple(float(weight) for weight in weights)
    if not checked:
        raise DataError("a population needs at least one client")
    for client, weight in enumerate(checked):
        if not (weight > 0 and math.isfinite(weight)):
            raise DataError(f"client {client} has the weight {weight}: expected one above 0")
    return checked


def checked_workers(workers: Any) -> tuple[WorkerHandle, ...]:
    """The workers of a population.

    Raises:
        DataError: none, one twice, or something that is no worker.
    """
    if isinstance(workers, str | WorkerHandle):
        raise DataError(f"workers takes a list of workers, also of one: [worker]; got {_SHOWN.repr(workers)}")
    given: Sequence[Any] = tuple(workers)
    for worker in given:
        if not isinstance(worker, WorkerHandle):
            raise DataError(
                'a worker is a handle, such as VirtualWorker("bob") or connect("grpc://..."); got '
                f"{_SHOWN.repr(worker)}"
            )
    ids = [worker.id for worker in given]
    if not ids:
        raise DataError("a population needs at least one worker")
    if len(set(ids)) != len(ids):
        raise DataError(f"a population needs workers of different ids, each once, got {ids}")
    return tuple(given)


def _all(name: str, value: Any, example: str) -> Iterable[Any]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InputError(f"{name} takes a list of {example}; got {_SHOWN.repr(value)}")
    return value


__all__ = [
    "check_kinds",
    "check_lists",
    "check_rounds",
    "checked_seed",
    "checked_weights",
    "checked_workers",
]
