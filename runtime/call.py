"""What a handler works with: the parts of its worker, and one request with its tensors and its client.

The client's rights are asked for here. No message is handled here: see `runtime.handlers`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import msgspec
import torch

from planc.errors import DecodeError, InputError, LimitError
from planc.ir import DType, from_torch
from planc.lower.transfer import to_device, wait
from runtime.access.approvals import Approvals
from runtime.access.standing import Standing
from runtime.access.usage import Taken, Usage
from runtime.audit.touched import Left, Touched
from runtime.errors import ObjectExists, ObjectNotFound, PermissionDenied, WrongWorker
from runtime.executor import Executor
from runtime.identity import Identity
from runtime.messages import Body, Gradient, Handle, Pointer, Request, Slot
from runtime.policy import PUBLIC, Policy, Right, Secrecy
from runtime.shelf import Shelf
from runtime.store import Store, Stored

_ALONE = 2**20
"""A tensor of this many bytes that is alone in its frame is kept as it came. Others are copied out:
each would hold the memory of its whole frame."""


@dataclass(slots=True)
class Site:
    """The parts of a worker that handlers use.

    ``send`` delivers one body to a peer, once for a request that is repeated; ``unlocked`` opens the worker
    to other requests meanwhile, and ``computing`` does so for a plan that is going to write to the objects
    with these ids. ``reply_bytes`` are those of the tensors in a reply at most.
    """

    worker: str
    device: torch.device
    store: Store
    shelf: Shelf
    policy: Policy
    executor: Executor
    approvals: Approvals
    usage: Usage
    send: Callable[[str, Body, Sequence[torch.Tensor], Request | None], None]
    unlocked: Callable[[], AbstractContextManager[None]]
    computing: Callable[[Iterable[int]], AbstractContextManager[None]]
    audit_head: Callable[[], tuple[int, str] | None]
    reply_bytes: int
    started: float = field(default_factory=time.time)


_NOTHING_TAKEN = Taken()
"""Of who was turned away: nobody counts that."""


def _nothing() -> None:
    """There is no log to write to."""


class Given(msgspec.Struct, frozen=True, gc=False):
    """A tensor that a request names, its secrecy, and whether the client may change it."""

    tensor: torch.Tensor
    secrecy: Secrecy
    owned: bool


class Call:
    """One request: who asks, the tensors that came along, and those to go back.

    Attributes:
        standing: who asks, and what they are here.
        client: the name of who asks.
        rights: what the policy lets the client do.
        right: what the message asks to do: data of others is looked at with this right.
        spent: seconds of computing.
        taken: what the client has taken so far.
        touched: what the request looked at and what left, for the audit log.
        request: the message itself.
        logged: whether there is an audit log.
        log_leaving: write that something is about to leave, before it does; for what no reply carries.
    """

    __slots__ = (
        "_attached",
        "_memories",
        "_spread",
        "back",
        "client",
        "log_leaving",
        "logged",
        "request",
        "right",
        "rights",
        "site",
        "spent",
        "standing",
        "taken",
        "tensors",
        "touched",
    )

    def __init__(
        self,
        site: Site,
        standing: Standing,
        tensors: Sequence[torch.Tensor],
        request: Request | None = None,
    ) -> None:
        self.site = site
        self.standing = standing
        self.client = standing.name
        self.rights = standing.rights
        self.tensors = tensors
        self.request = request
        self.taken = _NOTHING_TAKEN
        self.back: list[torch.Tensor] = []
        self.right = Right.OWN
        self.spent = 0.0
        self.touched = Touched()
        self.logged = False
        self.log_leaving: Callable[[], None] = _nothing
        self._attached = 0
        self._spread = 0
        self._memories: set[int] = set()

    @property
    def identity(self) -> Identity:
        """Who asks."""
        return self.standing.identity

    @contextmanager
    def charged(self) -> Generator[None]:
        """Charge the client for the time that this takes."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.spent += time.perf_counter() - start

    def see(self, id: int) -> Stored:
        """An object that the client may look at as this message asks to.

        Raises:
            ObjectNotFound: there is none, or it may not know of it; the text is the same.
            PermissionDenied: it may know of it, but not do this with it.
        """
        stored = self.site.store.get(id)
        if stored is not None:  # what was asked for in vain is logged too
            self.touched.data[id] = stored
        if stored is None or not (stored.owner == self.client or self.sees(stored)):
            if stored is not None and self.sees(stored, Right.SEARCH):
                raise PermissionDenied(
                    f"{self.client!r} may find object {id}, but not {self.right.value} it: the policy of "
                    f"worker {self.site.worker!r} does not allow that for its tags; ask its owner"
                )
            raise ObjectNotFound(f"there is no object {id}, or it is not yours")
        return stored

    def sees(self, stored: Stored, right: Right | None = None) -> bool:
        """Whether the client may look at an object as this message asks to, or with another right."""
        if not self.site.policy.may_see(
            self.client, stored.owner, self.site.worker, stored.secrecy, stored.tags
        ):
            return False
        return self.owns(stored) or self.rights.covers(right or self.right, stored.tags)

    def secrecy(self, stored: Stored) -> Secrecy:
        """The secrecy of an object for this client: what it may use but not have is private to it."""
        secrecy = stored.secrecy
        if secrecy.private or self.owns(stored) or self.rights.covers(Right.FETCH, stored.tags):
            return secrecy
        return Secrecy(private=True)

    def change(self, id: int) -> Stored:
        """An object that the client may change.

        Raises:
            ObjectNotFound: as `see`.
            PermissionDenied: it belongs to another.
        """
        stored = self.see(id)
        if not self.owns(stored):
            raise PermissionDenied(f"object {id} belongs to another: {self.client!r} may not change it")
        return stored

    def owns(self, stored: Stored) -> bool:
        """Whether the client may change an object."""
        return self.site.policy.may_change(self.client, stored.owner)

    def require_having(self, whom: str, secrecy: Secrecy, what: str) -> None:
        """Check that a client or worker may have the elements of a value.

        Raises:
            PermissionDenied: they are private.
        """
        if not self.site.policy.may_have(whom, secrecy):
            raise PermissionDenied(
                f"{what} is private: {whom!r} may compute with it, but not have it; what may leave are "
                "the results of a plan that the owner of the worker approved, on originals"
            )

    def tensor(self, id: int, stored: Stored) -> torch.Tensor:
        """The tensor of an object.

        Raises:
            WrongWorker: it is a pointer to an object elsewhere.
        """
        if isinstance(stored.value, Pointer):
            at = stored.value
            raise WrongWorker(
                f"object {id} at {self.site.worker!r} is a pointer to object {at.id} at {at.worker!r}: "
                f"use it there, or get it first"
            )
        return stored.value

    def given(self, argument: Handle | Slot | Gradient) -> Given:
        """The tensor that a request names by handle, as the gradient of one, or brought along."""
        if isinstance(argument, Slot):
            return Given(self.slot(argument), PUBLIC, owned=True)
        if isinstance(argument, Gradient):
            return self.gradient(argument.id)
        stored = self.see(argument.id)
        owned = self.owns(stored)
        secrecy = stored.secrecy if owned else self.secrecy(stored)
        return Given(self.tensor(argument.id, stored), secrecy, owned)

    def gradient(self, id: int) -> Given:
        """The ``.grad`` of an object that the client may change.

        Raises:
            InputError: it has none.
        """
        stored = self.change(id)
        tensor = self.tensor(id, stored)
        gradient = tensor.grad if tensor.is_leaf else None
        if gradient is None:
            raise InputError(f"object {id} has no gradient: no backward pass reached it")
        return Given(gradient.detach(), stored.grad_secrecy, owned=True)

    def slot(self, slot: Slot) -> torch.Tensor:
        """A tensor that came along, on the worker's device.

        Raises:
            DecodeError: there is no such tensor.
        """
        if slot.index >= len(self.tensors):
            raise DecodeError(f"slot {slot.index}: {len(self.tensors)} tensors came along")
        return to_device(self.tensors[slot.index], self.site.device)

    def slot_to_keep(self, slot: Slot) -> torch.Tensor:
        """As `slot`, with memory of its own."""
        tensor = self.slot(slot)
        alone = len(self.tensors) == 1 and tensor.nbytes >= _ALONE
        moved = tensor is not self.tensors[slot.index]
        if moved:  # other streams may use it: what is kept is there
            wait(tensor.device)
        return tensor.detach() if alone or moved else tensor.detach().clone()

    def attach(self, tensor: torch.Tensor, name: str) -> Slot:
        """Send a tensor back with the reply; ``name`` is what the audit log calls it.

        Raises:
            LimitError: the reply would be too large.
            StoreFull, QuotaExceeded: there is no room for the copies that the reply needs.
        """
        self._attached += tensor.nbytes
        if self._attached > self.site.reply_bytes:
            raise LimitError(
                f"the reply would have {self._attached} bytes of tensors or more, {self.site.reply_bytes} "
                "are allowed: fetch less at a time"
            )
        if not tensor.is_contiguous():
            # It is copied to be sent, and a view may have far more elements than memory, or be one of many.
            memory = tensor.untyped_storage()
            paid = 0 if memory.data_ptr() in self._memories else memory.nbytes()
            self._memories.add(memory.data_ptr())
            self._spread += max(tensor.nbytes - paid, 0)
            self.require_room(self._spread)
        self.touched.left.append(Left(name, tensor))
        self.back.append(tensor)
        return Slot(len(self.back) - 1)

    def require_room(self, nbytes: int) -> None:
        """Check that so many bytes more would fit, before anything is made of them.

        Raises:
            StoreFull: the worker has not got so much.
            QuotaExceeded: the client may not hold so much.
        """
        accounts = self.site.store.accounts
        if nbytes > 0:
            accounts.require_all(nbytes)
            limit = accounts.limit(self.client)
            if limit is not None:
                accounts.require(self.client, nbytes, limit)

    def require_new(self, ids: Iterable[int]) -> None:
        """Check that ids are free, and given once.

        Raises:
            ObjectExists: one is not.
        """
        for id in require_unique(ids):
            if self.site.store.get(id) is not None:
                raise ObjectExists(f"an object {id} is there already")

    def require_writable(self, ids: Iterable[int]) -> None:
        """As `require_new`, but a client may replace an object of its own."""
        for id in require_unique(ids):
            stored = self.site.store.get(id)
            if stored is not None and not self.owns(stored):
                raise ObjectExists(f"an object {id} is there already")

    def element_type(self, tensor: torch.Tensor) -> DType:
        """The dtype of a stored tensor."""
        dtype = from_torch(tensor.dtype)
        assert dtype is not None  # neither frames nor ops make others
        return dtype


def require_unique(ids: Iterable[int]) -> list[int]:
    """The ids as a list.

    Raises:
        InputError: one is given twice.
    """
    out = list(ids)
    if len(set(out)) < len(out):
        twice = next(id for id, count in Counter(out).items() if count > 1)
        raise InputError(f"object {twice} is given twice: expected ids that differ")
    return out


def require_paired(ids: Sequence[int], new_ids: Sequence[int]) -> None:
    """Check that there is a new id for each.

    Raises:
        InputError: there is not.
    """
    if len(ids) != len(new_ids):
        raise InputError(f"expected a new id for each of {len(ids)} objects, got {len(new_ids)}")
