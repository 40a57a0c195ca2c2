"""What is given up is freed after a while, where no message goes out: by one thread, never in between."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from runtime import VirtualWorker, count_messages
from runtime.channels import Connection
from runtime.errors import ConnectionLost
from runtime.remote.releases import Releaser
from runtime.worker import Worker


@pytest.fixture
def releaser() -> Iterator[Releaser]:
    made = Releaser(idle=0.01)
    yield made
    made.stop()


def until(true: Callable[[], bool]) -> bool:
    end = time.monotonic() + 10
    while not true() and time.monotonic() < end:
        time.sleep(0.002)
    return true()


def test_an_idle_connection_frees_what_was_given_up(bob: VirtualWorker, releaser: Releaser) -> None:
    kept, dropped = bob.send(torch.ones(3)), bob.send(torch.ones(4))
    del dropped
    assert len(bob.worker) == 2
    with count_messages() as sent:
        releaser.watch(bob.connection)
        assert until(lambda: len(bob.worker) == 1)
    assert sent.by_kind == {"Free": 1}  # one message, whatever was given up, and honestly counted
    assert kept.copy_here().tolist() == [1, 1, 1]


def test_time_counts_from_the_last_message(bob: VirtualWorker) -> None:
    releaser = Releaser(idle=10)
    x = bob.send(torch.ones(3))
    releaser.watch(bob.connection)
    start = time.monotonic()
    del x
    with count_messages() as sent:
        releaser.sweep(start + 1)
        bob.search("#none")  # takes the release along
        y = bob.send(torch.ones(3))
        del y
        releaser.sweep(start + 9)  # something was sent: time counts from here
        releaser.sweep(start + 18)
    assert sent.by_kind == {"Search": 1, "Put": 1}
    with count_messages() as sent:
        releaser.sweep(start + 19.5)
        releaser.sweep(start + 60)  # nothing is left to free
        bob.settle()
        assert len(bob.worker) == 0
    assert sent.by_kind == {"Free": 1}
    releaser.idle = None
    z = bob.send(torch.ones(3))
    del z
    releaser.sweep(start + 100)
    releaser.sweep(start + 1000)
    assert len(bob.worker) == 1
    releaser.stop()


class Slow:
    """A channel during whose calls the releaser looks."""

    def __init__(self, worker: Worker, during: Callable[[], Any]) -> None:
        self.worker, self.during = worker, during

    def call(self, frame: Any) -> Any:
        self.during()
        return self.worker.handle_frame(frame)

    def close(self) -> None: ...


def test_nothing_is_sent_during_a_call_and_a_lost_connection_is_survived() -> None:
    from runtime.messages import List

    worker, releaser = Worker("bob"), Releaser(idle=1)
    start = time.monotonic()

    def during() -> None:
        connection.release(5)
        for seconds in (10, 20, 30):
            releaser.sweep(start + seconds)

    connection = Connection(Slow(worker, during), "me")
    releaser.watch(connection)
    with count_messages() as sent:
        connection.call(List())
    assert sent.by_kind == {"List": 1}

    def lost() -> None:
        raise ConnectionLost("gone")

    connection._channel = Slow(worker, lost)
    with count_messages() as sent:
        releaser.sweep(start + 40)
        releaser.sweep(start + 40.5)
    assert sent.by_kind == {"Free": 1}
    assert connection.pending_releases == 1  # for the next try
    releaser.stop()


def test_it_keeps_no_connection_alive(releaser: Releaser) -> None:
    worker = VirtualWorker("short-lived")
    releaser.watch(worker.connection)
    assert len(releaser._connections) == 1
    del worker
    gc.collect()
    assert until(lambda: len(releaser._connections) == 0)


def test_the_thread_does_not_hinder_the_exit() -> None:
    code = """
import torch, runtime
from runtime.remote.releases import RELEASER
RELEASER.idle = 0.01
bob = runtime.VirtualWorker("bob")
xs = [bob.send(torch.ones(3)) for _ in range(50)]
del xs
print("done")
"""
    out = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert (out.stdout.strip(), out.stderr.strip()) == ("done", "")
