"""Suite "frames": what a message costs on the channel of this process, and how fast tensors become frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from benchmarks.harness import Result, compare, seconds
from runtime import VirtualWorker
from runtime.messages import Free, Put, PutItem, Request, Slot
from runtime.wire import decode, encode

MIB = 1 << 20
LARGE = 16 * MIB


def run(quick: bool = False) -> Iterator[Result]:
    yield _message(quick)
    yield _throughput(quick)


def _message(quick: bool) -> Result:
    """A message that asks for nothing: what a channel, the frames and a worker cost by themselves."""
    worker = VirtualWorker("bench")
    x = torch.randn(8)
    there = worker.send(x)
    return compare(
        "frames",
        "a message in this process",
        {
            "a copy of 8 numbers, no message": x.clone,
            "a message that frees nothing": lambda: worker.request(Free(())),
            "fetching 8 numbers": there.copy_here,
        },
        rounds=5 if quick else 15,
        seconds=0.05,
        note="encoding, counting, the worker's checks, its reply and decoding included",
    )


def _throughput(quick: bool) -> Result:
    tensor = torch.zeros(LARGE // 4)
    request = Request("me", 1, 1, 0, (), Put((PutItem(1, Slot(0)),)))
    frame = encode(request, [tensor])
    into = torch.empty_like(tensor)
    result = compare(
        "frames",
        f"a frame of {LARGE // MIB} MiB",
        {
            "a copy of the tensor": lambda: into.copy_(tensor),
            "encode": lambda: encode(request, [tensor]),
            "decode": lambda: decode(frame),
        },
        rounds=5 if quick else 15,
        seconds=0.05,
    )
    copy, encoding, decoding = (figure.median for figure in result.figures)
    note = (
        f"{LARGE / MIB / copy:,.0f} MiB/s copied, {LARGE / MIB / encoding:,.0f} MiB/s encoded; decoding "
        f"takes {seconds(decoding)} whatever the size, for tensors are views of the frame"
    )
    return replace(result, note=note)
