"""What clients keep at workers between rounds: the state that is their own, such as an optimizer's.

Knows where each one's state is, fetches all of it for a checkpoint and puts it back after one. Not
thread-safe by itself: the population has the lock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch

from runtime.remote.handle import WorkerHandle
from runtime.remote.tensor import RemoteTensor

_AT_ONCE = 16_384
"""Tensors in one message: what a message may name is bounded."""

State = Mapping[str, RemoteTensor]
_T = TypeVar("_T")


class KeptStates:
    """The kept states of a population's clients, by client."""

    def __init__(self) -> None:
        self._states: dict[int, State] = {}
        self._waiting: dict[int, Mapping[str, torch.Tensor]] = {}

    def __len__(self) -> int:
        return len(self._states) + len(self._waiting)

    def remember(self, states: Mapping[int, State]) -> None:
        """Take over what a cohort left at its worker, in place of what these clients kept before."""
        self._states |= {client: dict(state) for client, state in states.items() if state}

    def of(self, client: int) -> State:
        """A client's own state at its worker, by path; empty where it has none."""
        return self._states.get(client, {})

    def home(self, client: int) -> WorkerHandle | None:
        """The worker where a client's state is, if it has any."""
        return next((handle.location for handle in self.of(client).values()), None)

    def lose(self, worker: WorkerHandle) -> tuple[int, ...]:
        """Forget what was at a worker; the clients whose state that was."""
        lost = tuple(client for client in self._states if self.home(client) is worker)
        for client in lost:
            del self._states[client]
        return lost

    def fetch(self) -> dict[int, dict[str, torch.Tensor]]:
        """All states, here, and still at the workers: one message a worker."""
        places: dict[WorkerHandle, list[tuple[int, str, RemoteTensor]]] = {}
        for client, state in self._states.items():
            for path, handle in state.items():
                places.setdefault(handle.location, []).append((client, path, handle))
        out: dict[int, dict[str, torch.Tensor]] = {c: dict(state) for c, state in self._waiting.items()}
        for worker, found in places.items():
            for part in _parts(found):
                tensors = worker.fetch([handle.id for _, _, handle in part], delete=False)
                for (client, path, _), tensor in zip(part, tensors, strict=True):
                    out.setdefault(client, {})[path] = tensor
        return out

    def restore(self, states: Mapping[int, Mapping[str, torch.Tensor]]) -> None:
        """Take these states in place of all others; each goes to a worker when its client is next used."""
        self._states = {}
        self._waiting = {client: dict(state) for client, state in states.items() if state}

    def send(self, worker: WorkerHandle, clients: Sequence[int]) -> None:
        """Put what was restored of some clients at their worker: one message, none where nothing was.

        Raises:
            WorkerError: the worker did not take it; it stays here.
        """
        due = [(c, path, t) for c in clients for path, t in self._waiting.get(c, {}).items()]
        sent: dict[int, dict[str, RemoteTensor]] = {}
        for part in _parts(due):
            handles = worker.send_all([tensor for _, _, tensor in part])
            for (client, path, _), handle in zip(part, handles, strict=True):
                sent.setdefault(client, {})[path] = handle
        self._states |= sent
        for client in sent:
            del self._waiting[client]


def _parts(items: list[_T]) -> list[list[_T]]:
    return [items[i : i + _AT_ONCE] for i in range(0, len(items), _AT_ONCE)]


__all__ = ["KeptStates"]
