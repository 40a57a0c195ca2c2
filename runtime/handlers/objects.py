"""The messages that keep, fetch, find and move objects. None of them computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from msgspec.structs import replace

from planc.errors import InputError
from runtime.audit.touched import Left
from runtime.call import Call, require_paired, require_unique
from runtime.errors import PermissionDenied
from runtime.messages import (
    Clear,
    Copy,
    Done,
    Found,
    Free,
    Get,
    List,
    ObjectInfo,
    Pointer,
    Put,
    PutItem,
    Search,
    Slot,
    Transfer,
    Values,
)
from runtime.policy import PUBLIC, Secrecy
from runtime.store import Stored

_PREVIEW = 16
"""Elements of the largest tensor that a listing shows."""


def _put(call: Call, body: Put) -> Done:
    call.require_new(item.id for item in body.items)
    puts = {item.id: _new(call, item) for item in body.items}
    call.touched.data.update(puts)
    call.site.store.commit(puts)
    return Done()


def _get(call: Call, body: Get) -> Values:
    found = [(id, call.change(id) if body.delete else call.see(id)) for id in body.ids]
    for id, stored in found:
        if not isinstance(stored.value, Pointer):
            call.require_having(call.client, call.secrecy(stored), f"object {id}")
    # One that is asked for again and again is sent once.
    once = {id: _send_back(call, id, stored) for id, stored in dict(found).items()}
    items = tuple(once[id] for id in body.ids)
    if body.delete:
        call.site.store.commit({}, set(body.ids))
    return Values(items)


def _copy(call: Call, body: Copy) -> Done:
    require_paired(body.ids, body.new_ids)
    call.require_new(body.new_ids)
    # Before anything is made: a view may have far more elements than memory.
    values = [call.see(id).value for id in body.ids]
    call.require_room(sum(value.nbytes for value in values if isinstance(value, torch.Tensor)))
    puts: dict[int, Stored] = {}
    for id, new_id in zip(body.ids, body.new_ids, strict=True):
        source = call.see(id)
        value = source.value
        if isinstance(value, torch.Tensor):
            value = value.detach().clone().requires_grad_(value.requires_grad)
        # Tags stay with the original: a search finds it once.
        puts[new_id] = Stored(value, call.client, (), source.description, call.secrecy(source))
    call.site.store.commit(puts)
    return Done()


def _free(call: Call, body: Free) -> Done:
    for id in body.ids:
        call.change(id)
    call.site.store.commit({}, set(body.ids))
    return Done()


def _search(call: Call, body: Search) -> Found:
    return _found(call, call.site.store.search(body.tags))


def _list_all(call: Call, _body: List) -> Found:
    return _found(call, call.site.store.search(()))


def _clear(call: Call, _body: Clear) -> Done:
    store = call.site.store
    mine = {id: stored for id in store if (stored := store.get(id)) is not None and call.owns(stored)}
    call.touched.data.update(mine)
    store.commit({}, mine)
    return Done()


def _transfer(call: Call, body: Transfer) -> Done:
    """Put at the peer, and only when it acknowledged that drop the objects here."""
    require_paired(require_unique(body.ids), body.new_ids)
    _require_way(call, body.to)
    store = call.site.store
    found = {id: (call.see(id) if body.keep else call.change(id)) for id in body.ids}
    if body.to == call.site.worker:
        return _rename(call, body, found)
    tensors: list[torch.Tensor] = []
    items: list[PutItem] = []
    for (id, stored), new_id in zip(found.items(), body.new_ids, strict=True):
        if isinstance(stored.value, torch.Tensor):
            call.require_having(body.to, call.secrecy(stored), f"object {id}")
            tensors.append(stored.value)
            call.touched.left.append(Left(f"object {id}", stored.value, body.to))
        items.append(_item(new_id, stored, Slot(len(tensors) - 1), call.client))
    call.log_leaving()
    with call.site.unlocked():
        call.site.send(body.to, Put(tuple(items)), tensors, call.request)
    if not body.keep:
        # Whoever replaced one meanwhile keeps what they put.
        store.commit({}, [id for id, stored in found.items() if store.get(id) is stored])
    return Done()


def _require_way(call: Call, to: str) -> None:
    """Check that objects may go there, and for this client."""
    site, allowed = call.site, call.rights.move
    if to == site.worker or (site.policy.may_send_to(to) and (allowed is None or to in allowed)):
        return
    known = site.policy.peers if allowed is None else allowed
    raise PermissionDenied(
        f"{call.client!r} may not have objects sent to {to!r}: the policy allows "
        f"{', '.join(repr(name) for name in sorted(known or ())) or 'nobody'}; ask the owner of worker "
        f"{site.worker!r}"
    )


def _rename(call: Call, body: Transfer, found: dict[int, Stored]) -> Done:
    if body.keep:
        return _copy(call, Copy(body.ids, body.new_ids))
    call.require_new(id for id in body.new_ids if id not in found)
    require_unique(body.new_ids)
    call.site.store.commit(
        {new_id: replace(stored) for new_id, stored in zip(body.new_ids, found.values(), strict=True)},
        body.ids,
    )
    return Done()


def _new(call: Call, item: PutItem) -> Stored:
    owner = item.owner or call.client
    if not call.site.policy.may_put_for(call.identity, owner, call.site.worker):
        raise PermissionDenied(f"{call.client!r} may not put objects in the name of {owner!r}")
    secrecy = Secrecy(True, item.derived, frozenset(item.allowed)) if item.private else PUBLIC
    value = item.value
    if isinstance(value, Slot):
        value = call.slot_to_keep(value)
        if item.requires_grad and not value.is_floating_point():
            raise InputError(
                f"object {item.id}: only floating-point tensors can require grad, got {value.dtype}"
            )
        value.requires_grad_(item.requires_grad)
    return Stored(value, owner, item.tags, item.description, secrecy)


def _item(id: int, stored: Stored, slot: Slot, client: str) -> PutItem:
    """How an object is sent to a peer: it stays what it is, and its owner's."""
    value = stored.value
    return PutItem(
        id,
        slot if isinstance(value, torch.Tensor) else value,
        stored.tags,
        stored.description,
        stored.secrecy.private,
        isinstance(value, torch.Tensor) and value.requires_grad,
        tuple(sorted(stored.secrecy.allowed)),
        client,
        stored.secrecy.derived,
    )


def _send_back(call: Call, id: int, stored: Stored) -> Slot | Pointer:
    return stored.value if isinstance(stored.value, Pointer) else call.attach(stored.value, f"object {id}")


def _found(call: Call, ids: list[int]) -> Found:
    objects = ((id, call.site.store.get(id)) for id in ids)
    return Found(tuple(_info(call, id, s) for id, s in objects if s is not None and call.sees(s)))


def _info(call: Call, id: int, stored: Stored) -> ObjectInfo:
    value, private = stored.value, stored.secrecy.private
    if isinstance(value, Pointer):
        return ObjectInfo(id, None, (), stored.tags, stored.description, private, False, value, "")
    preview = ""
    shown = call.rights.fetch.anything and call.site.policy.may_have(call.client, call.secrecy(stored))
    if shown and value.numel() <= _PREVIEW:
        call.touched.previews += 1
        preview = repr(value.detach().cpu())
    dtype = call.element_type(value)
    shape = tuple(value.shape)
    return ObjectInfo(
        id, dtype, shape, stored.tags, stored.description, private, value.requires_grad, None, preview
    )


HANDLERS: dict[type, Callable[..., Any]] = {
    Put: _put,
    Get: _get,
    Copy: _copy,
    Free: _free,
    Search: _search,
    List: _list_all,
    Clear: _clear,
    Transfer: _transfer,
}
