"""Sending the data of clients: to several workers at once, a piece at a time, and not waited for forever.

Knows no clients' places: who calls it decides what is sent, and notes what came.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from planc.errors import DecodeError
from runtime.errors import DeadlineExceeded, WorkerError
from runtime.federated.dispatch import Dispatch
from runtime.federated.sources import Piece
from runtime.remote.handle import WorkerHandle
from runtime.remote.tensor import RemoteTensor


def send_pieces(
    streams: Mapping[WorkerHandle, Iterator[Piece]],
    before: Callable[[WorkerHandle, Piece], None],
    after: Callable[[WorkerHandle, Piece, tuple[RemoteTensor, ...]], None],
    seconds: float,
) -> None:
    """Send what the streams give. A worker that fails gets no more; the others get all of theirs.

    Args:
        streams: the pieces for each worker.
        before: called before a piece is sent.
        after: called when it is there.
        seconds: how long to wait for everything.

    Raises:
        WorkerError: the first failure; it names its worker.
    """
    dispatch: Dispatch[list[RemoteTensor]] = Dispatch()
    on_way: dict[int, tuple[WorkerHandle, Piece]] = {}
    failures: list[WorkerError] = []
    until = time.monotonic() + seconds

    def feed(worker: WorkerHandle) -> None:
        piece = next(streams[worker], None)
        if piece is not None:
            before(worker, piece)
            on_way[dispatch.submit(worker, partial(worker.send_all, piece.tensors))] = worker, piece

    try:
        for worker in streams:
            feed(worker)
        while on_way:
            outcome = dispatch.wait(until)
            if outcome is None:
                late = next(worker for worker, _ in on_way.values())
                why = f"did not take the data of its clients in {seconds:g} seconds"
                failures.append(DeadlineExceeded(why, worker=late.id))
                break
            worker, piece = on_way.pop(outcome.attempt)
            if outcome.error is not None or outcome.value is None:
                failures.append(of_worker(outcome.error, worker))
            else:
                after(worker, piece, tuple(outcome.value))
                feed(worker)
    finally:
        dispatch.close()
    if failures:
        raise failures[0]


def of_worker(error: BaseException | None, worker: WorkerHandle) -> WorkerError:
    """What went wrong with a worker as an error that names it; faults of this side are raised as they are."""
    if isinstance(error, WorkerError):
        error.worker = error.worker or worker.id
        return error
    if isinstance(error, DecodeError):
        return WorkerError(f"answered nonsense: {error}", worker=worker.id)
    assert error is not None
    raise error


__all__ = ["of_worker", "send_pieces"]
