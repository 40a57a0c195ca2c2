"""The store by itself: commits are all or nothing; bytes and tags are always those of what it holds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import StoreFull
from runtime.messages import Pointer
from runtime.store import Store, Stored

_SHARED = [torch.zeros(10), torch.zeros(5)]


def _stored(kind: int, tags: tuple[str, ...]) -> Stored:
    if kind < 2:
        return Stored(_SHARED[kind][1:3], "me", tags)  # a view: its memory counts once
    return Stored(Pointer("bob", 1) if kind == 2 else torch.zeros(kind), "me", tags)


_COMMITS = st.lists(
    st.tuples(
        st.dictionaries(
            st.integers(1, 6),
            st.tuples(st.integers(0, 12), st.lists(st.sampled_from("abc"), max_size=3).map(tuple)),
            max_size=4,
        ),
        st.lists(st.integers(1, 6), max_size=3),
    ),
    max_size=8,
)


@settings(max_examples=150, deadline=None)
@given(_COMMITS)
def test_bytes_and_tags_follow_every_commit(commits: list) -> None:
    store, model = Store(150), {}
    for puts, deletes in commits:
        new = {id: _stored(kind, tags) for id, (kind, tags) in puts.items()}
        after = {id: s for id, s in model.items() if id not in deletes} | new
        try:
            store.commit(new, deletes)
        except StoreFull:
            assert _nbytes(after) > 150
        else:
            model = after
        assert {id: store.get(id) for id in store} == model
        assert store.nbytes == _nbytes(model)
        for tag in "abc":
            assert store.search([tag]) == sorted(id for id, s in model.items() if tag in s.tags)
        for id, stored in model.items():
            assert isinstance(stored.value, Pointer) or store.id_of(stored.value) == id
    store.commit({}, list(model))
    assert (store.nbytes, store._tags, store._uses, store._ids) == (0, {}, {}, {})


def _nbytes(model: dict[int, Stored]) -> int:
    storages = {
        s.value.untyped_storage().data_ptr(): s.value.untyped_storage().nbytes()
        for s in model.values()
        if isinstance(s.value, torch.Tensor)
    }
    return sum(storages.values())


def test_freeing_is_possible_when_full() -> None:
    store = Store(40)
    store.commit({1: Stored(torch.zeros(10), "me")})
    with pytest.raises(StoreFull):
        store.commit({2: Stored(torch.zeros(1), "me")})
    store.commit({2: Stored(torch.zeros(5), "me")}, [1])
    assert store.nbytes == 20


@settings(max_examples=60, deadline=None)
@given(_COMMITS, _COMMITS)
def test_what_is_undone_leaves_no_trace(before: list, after: list) -> None:
    store = Store(10_000)

    def apply(commits: list) -> None:
        for puts, deletes in commits:
            store.commit({id: _stored(kind, tags) for id, (kind, tags) in puts.items()}, deletes)

    apply(before)
    held, nbytes = {id: store.get(id) for id in store}, store.nbytes
    store.record()
    apply(after)
    assert {id for id in (*held, *store) if held.get(id) is not store.get(id)} <= set(store.changed)
    store.undo()
    assert {id: store.get(id) for id in store} == held
    assert store.nbytes == nbytes
    assert store.changed == []
    store.commit({}, list(held))
    assert (store.nbytes, store._tags, store._uses, store._ids) == (0, {}, {}, {})


def test_gradients_are_undone_too() -> None:
    store = Store(1000)
    leaf = torch.ones(2, requires_grad=True)
    store.commit({1: Stored(leaf, "me")})
    store.record()
    store.touch([1])
    leaf.grad = torch.ones(2)
    store.settle()
    old = store.get(1)
    assert old is not None
    store.touch([1])
    leaf.grad = None
    leaf.requires_grad_(False)
    store.commit({1: old.updated(torch.zeros(2), old.secrecy)})
    store.undo()
    assert store.get(1) is old
    assert leaf.requires_grad
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [1.0, 1.0]
