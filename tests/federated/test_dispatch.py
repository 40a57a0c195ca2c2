"""Work at workers: one job a worker at a time, outcomes as they come, and nothing of what was given up."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import VirtualWorker, WorkerHandle
from runtime.federated.dispatch import Dispatch, within
from runtime.messages import List

SOON = 30.0
ROOT = Path(__file__).parents[2]


class Elsewhere(VirtualWorker):
    """A worker that, as far as a dispatch knows, computes on another machine."""

    in_process = False


@pytest.fixture
def dispatch() -> Iterator[Dispatch[object]]:
    made: Dispatch[object] = Dispatch(here=1)
    yield made
    made.close()


def soon() -> float:
    return time.monotonic() + SOON


def test_an_outcome_has_value_or_error_and_its_own_messages(dispatch: Dispatch[object]) -> None:
    a, b = Elsewhere("a"), Elsewhere("b")
    first = dispatch.submit(a, lambda: [a.request(List()) for _ in range(3)] and "done")
    second = dispatch.submit(b, lambda: 1 / 0)
    outcomes = {}
    for _ in range(2):
        outcome = dispatch.wait(soon())
        assert outcome is not None
        outcomes[outcome.attempt] = outcome
    assert (outcomes[first].value, outcomes[first].error, outcomes[first].sent.messages) == ("done", None, 3)
    assert isinstance(outcomes[second].error, ZeroDivisionError)
    assert outcomes[second].sent.messages == 0
    assert outcomes[second].worker is b
    assert dispatch.wait(soon()) is None  # nothing is under way: nothing to wait for


def test_a_worker_has_one_job_at_a_time_and_several_work_at_once(dispatch: Dispatch[object]) -> None:
    a, b = Elsewhere("a"), Elsewhere("b")
    both = threading.Barrier(2, timeout=SOON)
    busy: set[WorkerHandle] = set()

    def job(worker: WorkerHandle, meet: bool) -> None:
        assert worker not in busy
        busy.add(worker)
        if meet:
            both.wait()  # breaks unless the other is at work too
        busy.remove(worker)

    for worker, meet in [(a, True), (a, False), (b, True), (b, False)]:
        dispatch.submit(worker, lambda worker=worker, meet=meet: job(worker, meet))
    outcomes = [dispatch.wait(soon()) for _ in range(4)]
    assert [outcome is not None and outcome.error for outcome in outcomes] == [None] * 4


def test_no_more_workers_of_this_process_compute_at_once_than_there_are_cores() -> None:
    dispatch: Dispatch[None] = Dispatch(here=2)
    at_once, most, lock = 0, 0, threading.Lock()

    def job() -> None:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.01)
        with lock:
            at_once -= 1

    for i in range(6):
        dispatch.submit(VirtualWorker(f"w{i}"), job)
    assert all(dispatch.wait(soon()) is not None for _ in range(6))
    assert most == 2
    dispatch.close()


def test_what_was_given_up_never_comes_and_frees_its_place(dispatch: Dispatch[object]) -> None:
    hanging, other = VirtualWorker("hanging"), VirtualWorker("other")
    release, ended = threading.Event(), threading.Event()

    def hang() -> str:
        release.wait(SOON)
        ended.set()
        return "too late"

    first = dispatch.submit(hanging, hang)
    behind = dispatch.submit(hanging, lambda: "never begun")
    third = dispatch.submit(other, lambda: "came")  # waits: one worker of this process at a time
    assert dispatch.wait(time.monotonic() + 0.05) is None
    assert set(dispatch.started()) == {first}
    assert set(dispatch.give_up(hanging)) == {first, behind}
    outcome = dispatch.wait(soon())
    assert outcome is not None
    assert (outcome.attempt, outcome.value) == (third, "came")
    again = dispatch.submit(hanging, lambda: "begun anew")  # in a new thread: the old one hangs still
    outcome = dispatch.wait(soon())
    assert outcome is not None
    assert (outcome.attempt, outcome.value) == (again, "begun anew")
    release.set()
    assert ended.wait(SOON)
    assert dispatch.wait(time.monotonic() + 0.05) is None


def test_an_outcome_that_nobody_took_is_given_up_too(dispatch: Dispatch[object]) -> None:
    worker = Elsewhere("a")
    number = dispatch.submit(worker, lambda: "came")
    while dispatch.started():
        time.sleep(0.001)
    assert dispatch.give_up(worker) == (number,)
    assert dispatch.wait(time.monotonic() + 0.05) is None


def test_threads_end_with_their_dispatch() -> None:
    dispatch: Dispatch[None] = Dispatch()
    dispatch.submit(VirtualWorker("passing"), lambda: None)
    assert dispatch.wait(soon()) is not None
    threads = [t for t in threading.enumerate() if t.name == "planc-round-passing"]
    assert len(threads) == 1
    del dispatch  # nobody closes it
    threads[0].join(SOON)
    assert not threads[0].is_alive()


def test_within_ends_in_time_or_gives_what_came() -> None:
    outcome = within(soon(), lambda: "value")
    assert outcome is not None
    assert outcome.value == "value"
    outcome = within(soon(), lambda: 1 / 0)
    assert outcome is not None
    assert isinstance(outcome.error, ZeroDivisionError)
    release = threading.Event()
    assert within(time.monotonic() + 0.01, lambda: release.wait(SOON)) is None
    release.set()


class _Job:
    """A job that can be looked for."""

    def __call__(self) -> str:
        return "done"


def test_a_job_is_let_go_of_before_its_outcome_comes(dispatch: Dispatch[object]) -> None:
    worker = VirtualWorker("a")
    for _ in range(50):  # what it holds are handles: a round has to end with none of the round before
        job = _Job()
        held = weakref.ref(job)
        dispatch.submit(worker, job)
        del job
        assert dispatch.wait(soon()) is not None
        assert held() is None


_ENDS = """
import threading, time, torch
from runtime import VirtualWorker
from runtime.federated.dispatch import Dispatch

torch.set_num_threads(1)
begun = threading.Event()

def job():
    x = torch.ones(8, requires_grad=True)
    end = time.monotonic() + 0.5
    begun.set()
    while time.monotonic() < end:
        torch.autograd.grad((torch.tanh(x) * x).sum(), x)

dispatch = Dispatch(here=1)
for name in ("a", "b"):
    dispatch.submit(VirtualWorker(name), job)
begun.wait()
"""


def test_python_can_end_while_a_worker_here_computes() -> None:
    # Without care it is aborted: a thread in torch's C++ that Python ends takes the process with it.
    done = subprocess.run(
        [sys.executable, "-c", _ENDS], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
