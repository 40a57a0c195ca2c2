"""What a handle to a remote tensor is: where, whose, what it refuses, and how it dies."""

from __future__ import annotations

import copy
import gc
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from planc.errors import CaptureError, InputError, UnsupportedOpError
from runtime import RemotePointer, RemoteTensor, VirtualWorker, count_messages, me
from runtime.errors import ObjectNotFound, WorkerError, WrongWorker
from runtime.remote import RemoteValueError
from tests.network.fixtures import settled

X = torch.tensor([[1.0, 2, 3], [4, 5, 6]])


def test_send_and_get_cost_a_message_each(bob: VirtualWorker) -> None:
    with count_messages() as sent:
        x = bob.send(X)
        assert torch.equal(x.copy_here(), X)
        assert torch.equal(x.get(), X)
    assert sent.by_kind == {"Put": 1, "Get": 2}
    assert len(bob.worker) == 0
    with pytest.raises(ObjectNotFound):
        x.get()


def test_one_tensor_sent_twice_is_two_values(bob: VirtualWorker) -> None:
    x, y = bob.send(X), bob.send(X)
    x.get()
    assert torch.equal(y.get(), X)


def test_a_sent_tensor_is_apart_from_the_local_one(bob: VirtualWorker) -> None:
    local = X.clone()
    x = bob.send(local)
    local.zero_()
    assert torch.equal(x.get(), X)


def test_location_owner_and_shape_are_known_here(bob: VirtualWorker) -> None:
    x = bob.send(X.int())
    with count_messages() as sent:
        assert x.location is bob
        assert x.owner is me()
        assert str(x.owner) == "<VirtualWorker id:me #objects:0>"
        assert (tuple(x.size()), x.dtype, x.tensor_type.rank, len(x)) == ((2, 3), torch.int32, 2, 2)
        assert repr(x) == f"<RemoteTensor me:{x.id} -> bob i32[2, 3]>"
        assert f"<b>bob</b>, id {x.id}: <code>i32[2, 3]</code>" in x._repr_html_()
    assert sent.messages == 0
    assert bob.objects[x.id].shape == (2, 3)
    assert repr(bob.objects[x.id]) == repr(X.int())


def test_tags_and_descriptions(bob: VirtualWorker) -> None:
    x = bob.send(X, tags=("#x", "#train"), description="<rows>")
    y = bob.send(X, tags=("#train",))
    assert [t.id for t in bob.search("#train")] == sorted((x.id, y.id))
    assert [t.id for t in bob.search("#train", "#x")] == [x.id]
    assert bob.search("#x")[0].description == "<rows>"
    assert "#x" in repr(x)
    assert "<rows>" not in x._repr_html_()
    x.add_(1)  # stays what it was
    assert torch.equal(bob.search("#x")[0].copy_here(), X + 1)
    x.get()
    assert bob.search("#x") == []


def test_a_found_handle_does_not_free_what_it_shows(bob: VirtualWorker) -> None:
    x = bob.send(X, tags=("#x",))
    found = bob.search("#x")
    del found
    gc.collect()
    assert torch.equal(x.get(), X)


@pytest.mark.parametrize(
    "fetch",
    [
        lambda x: x.sum().item(),
        bool,
        float,
        int,
        list,
        iter,
        range,
        np.asarray,
        torch.as_tensor,
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: x.cpu(),
        lambda x: 1.0 in x,
        lambda x: [1, 2][x],
        lambda x: x.data_ptr(),
        lambda x: "yes" if x.sum() > 0 else "no",
    ],
)
def test_nothing_fetches_silently(fetch: Any, bob: VirtualWorker) -> None:
    x = bob.send(X)
    with count_messages() as sent, pytest.raises((RemoteValueError, TypeError)):
        fetch(x)
    assert sent.by_kind["Get"] == 0


@pytest.mark.parametrize("show", [str, repr, format, lambda x: f"{x}", lambda x: x._repr_html_()])
def test_no_text_holds_a_value(show: Any, bob: VirtualWorker) -> None:
    assert "0.123" not in show(bob.send(torch.tensor([0.12345])))


@pytest.mark.parametrize(
    "name", ["register_hook", "set_", "resize_", "as_strided", "to_sparse", "no_such_method"]
)
def test_methods_that_a_handle_has_not(name: str, bob: VirtualWorker) -> None:
    with pytest.raises(AttributeError, match=name):
        getattr(bob.send(X), name)


@pytest.mark.parametrize("spoil", [pickle.dumps, copy.copy])
def test_a_handle_is_of_this_process(spoil: Any, bob: VirtualWorker) -> None:
    with pytest.raises(TypeError, match="handle"):
        spoil(bob.send(X))


def test_a_deep_copy_is_a_value_of_its_own(bob: VirtualWorker) -> None:
    x = bob.send(X)
    twin = copy.deepcopy({"x": x})["x"]
    x.add_(1)
    assert torch.equal(twin.get(), X)


def test_handles_are_hashed_by_identity(bob: VirtualWorker) -> None:
    x, y = bob.send(X), bob.send(X)
    assert {x: 1, y: 2}[x] == 1
    assert isinstance(x == y, RemoteTensor)
    assert (x == None) is False  # noqa: E711 -- as torch.Tensor answers
    with pytest.raises(TypeError):
        x + "text"


def test_dropped_handles_free_memory_with_the_next_message(bob: VirtualWorker) -> None:
    x = bob.send(X)
    y = x + x
    del y
    gc.collect()
    bob.settle()  # sends nothing
    assert len(bob.worker) == 2
    z = x * 2
    bob.settle()
    assert len(bob.worker) == 2
    with count_messages() as sent:
        del z
        x.copy_here()
    assert sent.messages == 1
    assert len(bob.worker) == 1


def test_cycles_of_handles_are_freed(bob: VirtualWorker) -> None:
    box: list[Any] = [bob.send(X)]
    box.append(box)
    del box
    gc.collect()
    bob.search("#none")
    assert len(bob.worker) == 0


def test_memory_is_flat_over_thousands_of_operations(bob: VirtualWorker) -> None:
    x = bob.send(torch.ones(1000))
    seen = set[tuple[int, int]]()
    for _ in range(2000):
        y = x * 2 + 1
        y[0] = 3.0
        x = y / 3
        seen.add((len(bob.worker), bob.worker.nbytes))
    assert max(n for n, _ in seen) <= 8
    assert max(n for _, n in seen) <= 8 * 4000
    assert bob.connection.pending_releases <= 8


def test_copy_is_remote(bob: VirtualWorker) -> None:
    x = bob.send(X)
    with count_messages() as sent:
        y = x.copy()
    assert sent.by_kind == {"Copy": 1}
    x.add_(1)
    assert torch.equal(y.get(), X)


def test_move_goes_straight_and_keeps_the_id(bob: VirtualWorker, alice: VirtualWorker) -> None:
    x = bob.send(torch.zeros(10_000), tags=("#x",))
    id = x.id
    with count_messages() as sent:
        assert x.move(alice) is x
        assert x.move(alice) is x  # where it is already
    assert (sent.messages, sent.peer_messages) == (1, 1)
    assert sent.bytes_out < 1000 < 40_000 < sent.peer_bytes
    assert (x.id, x.location) == (id, alice)
    assert (len(bob.worker), len(alice.worker)) == (0, 1)
    assert [t.id for t in alice.search("#x")] == [id]
    del x
    gc.collect()
    alice.search("#none")
    assert len(alice.worker) == 0


def test_a_pointer_to_a_pointer(bob: VirtualWorker, alice: VirtualWorker) -> None:
    x = bob.send(X)
    with count_messages() as sent:
        pointer = x.send(alice)
    assert isinstance(pointer, RemotePointer)
    assert sent.by_kind == {"Put": 1}
    assert repr(alice.objects[pointer.id]) == f"[pointer alice:{pointer.id} -> bob:{x.id}]"
    assert (pointer.location, pointer.owner) == (alice, me())
    assert f"alice:{pointer.id} -> bob:{x.id}" in repr(pointer)
    assert pointer.get() is x
    assert len(alice.worker) == 0
    assert torch.equal(x.get(), X)


def test_a_chain_of_pointers_frees_what_it_points_to(bob: VirtualWorker, alice: VirtualWorker) -> None:
    pointer = bob.send(X).send(alice)
    gc.collect()
    bob.search("#none")
    assert len(bob.worker) == 1  # the chain holds it
    del pointer
    gc.collect()
    bob.search("#none")
    alice.search("#none")
    assert (len(bob.worker), len(alice.worker)) == (0, 0)


def test_operands_of_two_workers_are_refused(bob: VirtualWorker, alice: VirtualWorker) -> None:
    x, y = bob.send(X), alice.send(X)
    with count_messages() as sent, pytest.raises(WrongWorker, match=r"'bob'.*'alice'.*move"):
        x + y
    assert sent.messages == 0


def test_an_operation_is_one_message(bob: VirtualWorker) -> None:
    x, w = bob.send(X), bob.send(torch.ones(3, 3))
    for work in (
        lambda: x + x,
        lambda: x @ w,
        lambda: x.sum(0),
        lambda: x[0],
        lambda: torch.relu(x),
        lambda: x > 2,
    ):
        with count_messages() as sent:
            work()
        assert sent.by_kind == {"Apply": 1}
    with count_messages() as sent:
        x.add_(1)
    assert sent.by_kind == {"Apply": 1}


def test_errors_name_the_worker_and_the_operation(bob: VirtualWorker) -> None:
    x = bob.send(X)
    index = bob.send(torch.tensor([7]))
    with pytest.raises(WorkerError, match=r"'bob'.*index_select"):
        settled(bob, lambda: x.index_select(0, index))
    with pytest.raises(CaptureError):
        x @ x
    with pytest.raises(InputError, match="out of range for dim 1 of size 3"):
        x[0, 5]
    with pytest.raises(CaptureError):
        x[x > 0]  # the result's shape would depend on the data
    with pytest.raises(UnsupportedOpError, match="out="):
        torch.add(x, x, out=x)
    with pytest.raises(InputError, match="ndarray"):
        x.add(np.ones(3))
    with pytest.raises(InputError, match="dtype"):
        bob.send(torch.ones(2, dtype=torch.complex64))
    assert torch.equal(x.get(), X)


def test_views_know_when_they_are_stale(bob: VirtualWorker) -> None:
    x = bob.send(X)
    row, flat = x[0], x.reshape(-1)
    with pytest.raises(InputError, match="view"):
        flat.add_(1)
    row.add_(1)  # reaches x, as in torch
    assert torch.equal(x.copy_here()[0], X[0] + 1)
    assert torch.equal((row + 0).get(), X[0] + 1)
    with pytest.raises(InputError, match="take the view again"):
        flat + 1


def test_an_index_of_an_index_reaches_the_tensor(bob: VirtualWorker) -> None:
    local = X.clone()
    x = bob.send(X)
    for t in (local, x):
        t[0][1] += 1
        t[1:][0][1:] *= 3
        row = t[1]
        one = row[0]
        one.add_(5)
        row.mul_(2)  # and not: "take the view again"
        t[0][1:][0] = 7
    assert torch.equal(x.copy_here(), local)
    part = x[0].reshape(-1)[0]
    with pytest.raises(InputError, match="reshape"):
        part.add_(1)
    one = x[0][1]
    x.add_(1)
    with pytest.raises(InputError, match="take the view again"):
        one.add_(1)


def test_random_operations_follow_torchs_seed(bob: VirtualWorker) -> None:
    x = bob.send(torch.ones(100))

    def draw() -> torch.Tensor:
        return (torch.nn.functional.dropout(x, 0.5, training=True) + torch.rand_like(x)).get()

    torch.manual_seed(1)
    first, second = draw(), draw()
    torch.manual_seed(1)
    assert torch.equal(draw(), first)
    assert not torch.equal(first, second)


def test_a_leaf_cannot_be_changed_in_place_under_grad(bob: VirtualWorker) -> None:
    w = bob.send(torch.ones(3, requires_grad=True))
    with pytest.raises(InputError, match="no_grad"):
        w.add_(1)
    with pytest.raises(InputError, match="get it first"):
        torch.zeros(3).add_(w.detach())
