"""The plans that a worker keeps: decoded, verified, under the id that their bytes have. Does not run them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from planc.codec import decode, plan_id
from planc.errors import DecodeError, PlanError
from planc.ir import type_of
from planc.ir.constants import digest
from planc.ir.program import Program
from planc.limits import Limits
from runtime.errors import PlanNotFound, StoreFull
from runtime.messages import MAX_TAGS


@dataclass(slots=True)
class Installed:
    """One plan: its program, its canonical bytes, who installed it, and what it is found by."""

    program: Program
    data: bytes
    nbytes: int
    clients: set[str] = field(default_factory=set[str])
    tags: dict[str, None] = field(default_factory=dict[str, None])
    description: str = ""
    forms: dict[Any, Any] = field(default_factory=dict[Any, Any], compare=False, repr=False)
    repeats: dict[Any, Any] = field(default_factory=dict[Any, Any], compare=False, repr=False)
    """What was found out about messages that ran it, and about the last one of each client:
    `runtime.handlers.runs`."""


@dataclass(slots=True)
class Shelf:
    """Plans by id. Not thread-safe by itself: the worker has the lock.

    Attributes:
        limits: how large one plan may be.
        max_plans: how many there may be.
        max_bytes: the bytes of all plans and their constants.
    """

    limits: Limits
    max_plans: int
    max_bytes: int
    nbytes: int = 0
    _plans: dict[str, Installed] = field(default_factory=dict[str, Installed])
    _before: dict[str, Installed | None] | None = None

    def get(self, id: str) -> Installed:
        """The plan of this id.

        Raises:
            PlanNotFound: it is not installed.
        """
        installed = self._plans.get(id)
        if installed is None:
            raise PlanNotFound(f"plan {id!r} is not installed; install it first", plan_id=id)
        return installed

    def install(
        self,
        id: str,
        data: bytes,
        constants: Mapping[str, torch.Tensor],
        client: str,
        tags: Sequence[str],
        description: str,
        accept: Callable[[Installed], None] | None = None,
    ) -> None:
        """Keep a plan. One that is there stays as it is; the tags are added.

        ``accept`` is shown the plan, checked, before anything is kept, and may raise.

        Raises:
            DecodeError: the bytes are not a plan, or not of this id, or the constants are not the plan's.
            PlanError: the plan is not valid, or larger than the limits allow.
            StoreFull: there is no room for it.
        """
        installed = self._plans.get(id)
        known = installed.tags if installed else {}
        if len(known.keys() | set(tags)) > MAX_TAGS:
            raise StoreFull(f"plan {id!r} would have more than {MAX_TAGS} tags")
        if installed is None:
            installed = self.check(id, data, constants, description)
            if accept is not None:
                accept(installed)
            if len(self._plans) >= self.max_plans:
                raise StoreFull(f"there is no room for plan {id!r}: {self.max_plans} plans are kept")
            if self.nbytes + installed.nbytes > self.max_bytes:
                raise StoreFull(
                    f"plan {id!r} needs {installed.nbytes} bytes: {self.nbytes} of {self.max_bytes} are held"
                )
            self._touch(id)
            self._plans[id] = installed
            self.nbytes += installed.nbytes
        elif accept is not None:
            accept(installed)
        self._touch(id)
        installed.clients.add(client)
        installed.tags.update(dict.fromkeys(tags))

    def uninstall(self, id: str, client: str) -> None:
        """Forget that a client installed a plan, and the plan when no other did. Passes over others."""
        installed = self._plans.get(id)
        if installed is None or client not in installed.clients:
            return
        self._touch(id)
        installed.clients.remove(client)
        if not installed.clients:
            del self._plans[id]
            self.nbytes -= installed.nbytes

    def of(self, client: str) -> list[Installed]:
        """The plans that a client installed."""
        return [installed for installed in self._plans.values() if client in installed.clients]

    def __iter__(self) -> Iterator[tuple[str, Installed]]:
        return iter(sorted(self._plans.items()))

    def __len__(self) -> int:
        return len(self._plans)

    def search(self, tags: Iterable[str], client: str) -> list[tuple[str, Installed]]:
        """The plans with all of these tags that a client installed or that have tags, by id."""
        wanted = set(tags)
        return [
            (id, installed)
            for id, installed in sorted(self._plans.items())
            if wanted <= installed.tags.keys() and (installed.tags or client in installed.clients)
        ]

    def find(self, id: str) -> Installed | None:
        """The plan of this id, if it is installed."""
        return self._plans.get(id)

    def restore(self, id: str, installed: Installed) -> None:
        """Keep a plan that was kept before, and checked then (`check`). There is no limit to that."""
        self._plans[id] = installed
        self.nbytes += installed.nbytes

    def record(self) -> None:
        """From now on remember what changes, and how it was before."""
        self._before = {}

    @property
    def changed(self) -> list[str]:
        """The ids of the plans that changed since `record` or `settle`."""
        return list(self._before or ())

    def settle(self) -> None:
        """Let the changes stand."""
        if self._before is not None:
            self._before = {}

    def undo(self) -> None:
        """Take back what changed since `record` or `settle`."""
        for id, before in (self._before or {}).items():
            if (now := self._plans.pop(id, None)) is not None:
                self.nbytes -= now.nbytes
            if before is not None:
                self.restore(id, before)
        self.settle()

    def _touch(self, id: str) -> None:
        if self._before is not None and id not in self._before:
            now = self._plans.get(id)
            self._before[id] = now and replace(now, clients=set(now.clients), tags=dict(now.tags))

    def check(
        self, id: str, data: bytes, constants: Mapping[str, torch.Tensor], description: str
    ) -> Installed:
        """A plan, ready to be kept.

        Raises:
            DecodeError: the bytes are not a plan, or not of this id, or the constants are not the plan's.
            PlanError: the plan is not valid, or larger than the limits allow.
        """
        graph = decode(data, self.limits)
        actual = plan_id(graph)
        if actual != id:
            raise DecodeError(f"the plan has the id {actual}, not the {id!r} that it was sent as")
        wanted = {c.digest: c.value.type for inner in graph.walk() for c in inner.constants}
        if wanted.keys() != constants.keys():
            missing, extra = (
                sorted(wanted.keys() - constants.keys()),
                sorted(constants.keys() - wanted.keys()),
            )
            raise DecodeError(f"plan {graph.name!r}: constants missing: {missing}, not the plan's: {extra}")
        for name, tensor in constants.items():
            if type_of(tensor) != wanted[name]:
                raise PlanError(f"constant {name}: expected {wanted[name]}, got {type_of(tensor)}")
            if digest(tensor) != name:
                raise DecodeError(f"constant {name}: expected data of this digest, got {digest(tensor)}")
        nbytes = len(data) + sum(tensor.nbytes for tensor in constants.values())
        return Installed(Program(graph, dict(constants)), data, nbytes, description=description)
