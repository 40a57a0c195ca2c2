"""Moves between the machine's memory and a device: what goes through pinned memory, and how often is waited.

There is no device here: the CPU, or tensors that say that they are elsewhere, stand for it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch

import planc
from planc.lower import transfer
from planc.lower.transfer import SMALL, numbered, to_device, to_host
from runtime import VirtualWorker
from runtime.messages import Done, Reply
from runtime.wire import decode, encode, encode_pieces

CPU = torch.device("cpu")
FAR = torch.device("cpu", 0)
"""Another device to those who compare, and the same memory."""
LARGE = torch.arange(SMALL // 4, dtype=torch.float32)


class Far(torch.Tensor):
    """A tensor that says that it is not in the machine's memory."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportPrivateUsage]
    is_cpu = False  # pyright: ignore[reportAssignmentType]


def far(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_subclass(Far)


class Device:
    """What happened at the device that the CPU stands for."""

    def __init__(self) -> None:
        self.pinned: list[int] = []
        self.waits = 0
        self.room = True
        self.lock = threading.Lock()

    def pin(self, tensor: torch.Tensor) -> torch.Tensor | None:
        with self.lock:
            if not self.room:
                return None
            self.pinned.append(tensor.nbytes)
            return torch.empty_like(tensor.detach().as_subclass(torch.Tensor))

    def stream(self, device: torch.device) -> SimpleNamespace:
        assert device in (CPU, FAR)
        return SimpleNamespace(synchronize=self.synchronize)

    def synchronize(self) -> None:
        with self.lock:
            self.waits += 1


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device()
    monkeypatch.setattr(transfer, "_pinned", made.pin)
    monkeypatch.setattr(transfer, "_FAR", "cpu")
    monkeypatch.setattr(torch.cuda, "current_stream", made.stream)
    return made


def same(got: Sequence[torch.Tensor], want: Sequence[torch.Tensor]) -> None:
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert a.dtype is b.dtype
        assert torch.equal(a, b.as_subclass(torch.Tensor))


def test_on_the_cpu_nothing_is_moved() -> None:
    tensors = [LARGE, torch.ones(2)]
    assert to_device(LARGE, CPU) is LARGE
    assert to_host(tensors) is tensors
    copied = to_device(LARGE, CPU, copy=True)
    assert copied.data_ptr() != LARGE.data_ptr()
    same([copied], [LARGE])


@pytest.mark.parametrize(
    "tensor",
    [
        LARGE,
        LARGE.view(2, -1).t(),
        torch.randn(1, 8, 64, 64).to(memory_format=torch.channels_last),
        LARGE > 7,
    ],
    ids=["plain", "turned", "channels last", "bools"],
)
def test_large_tensors_go_to_the_device_through_pinned_memory(tensor: torch.Tensor, device: Device) -> None:
    large = tensor if tensor.nbytes >= SMALL else tensor.repeat(4)
    moved = to_device(large, FAR)
    assert device.pinned == [large.nbytes]
    assert device.waits == 0
    assert moved.data_ptr() != large.data_ptr()
    assert moved.stride() == large.stride()
    same([moved], [large])


def test_others_take_torchs_own_way(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PINNED", SMALL)
    others = [LARGE[1:], LARGE.repeat(2), far(LARGE)]  # too small, too large, not in the machine's memory
    same([to_device(t, FAR) for t in others], others)
    assert to_device(LARGE, CPU) is LARGE  # there already
    assert device.pinned == []
    device.room = False
    same([to_device(LARGE, FAR)], [LARGE])


def test_what_is_brought_has_no_autograd(device: Device) -> None:
    moved = to_device(LARGE.clone().requires_grad_(), FAR)
    assert not moved.requires_grad
    (back,) = to_host([far(torch.ones(2).requires_grad_())])
    assert not back.requires_grad
    assert device.waits == 1


def test_results_come_back_after_one_wait(device: Device) -> None:
    here = torch.ones(3)
    tensors = [far(LARGE), here, far(LARGE.view(2, -1).t()), far(torch.empty(0, 2)), far(torch.tensor(True))]
    got = to_host(tensors)
    assert device.waits == 1
    assert len(device.pinned) == 4
    assert got[1] is here
    assert all(t.is_cpu and t.is_contiguous() for t in got)
    same(got, tensors)


def test_pinned_memory_has_its_bound(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PINNED", 2 * LARGE.nbytes)
    tensors = [far(LARGE + i) for i in range(4)]
    same(to_host(tensors), tensors)
    assert device.pinned == [LARGE.nbytes] * 2
    device.room = False
    same(to_host(tensors), tensors)


@pytest.mark.parametrize("encoding", [encode, encode_pieces])
def test_a_frame_waits_once_for_all_its_tensors(encoding: type[bytearray], device: Device) -> None:
    tensors = [LARGE, torch.ones(3, 2).t(), torch.empty(0), torch.tensor([True, False])]
    frame = encode(Reply(1, Done()), tensors)
    assert device.waits == 0
    made = encoding(Reply(1, Done()), [far(t) for t in tensors])  # pyright: ignore[reportCallIssue]
    assert device.waits == 1
    joined = made if isinstance(made, bytearray) else made.join()
    assert joined == frame
    same(decode(joined)[1], tensors)


def test_a_worker_brings_what_it_is_sent_through_pinned_memory(device: Device) -> None:
    plan = planc.trace(lambda x, y: x + y, LARGE, LARGE, name="add")
    worker = VirtualWorker("pinned", device=FAR)
    worker.worker.add(LARGE, tags=("#x",))
    assert (device.pinned, device.waits) == ([LARGE.nbytes], 1)  # what is kept is there
    remote = plan.send(worker)
    device.pinned.clear()
    same([remote(LARGE, LARGE).get()], [LARGE * 2])
    assert device.pinned == [LARGE.nbytes] * 2


def test_devices_have_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert numbered("cuda") == numbered(torch.device("cuda")) == torch.device("cuda", 3)
    assert numbered("cuda:1") == torch.device("cuda", 1)
    assert numbered("cpu") == CPU
    assert numbered(CPU) is CPU
