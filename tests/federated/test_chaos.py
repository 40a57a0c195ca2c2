"""Runs whose workers and coordinators are real processes, killed with SIGKILL at random moments.

What is drawn follows from seeds; when a blow falls, and whom it hits, is left to chance: what comes of the
run must not depend on it. All in one module: pytest-xdist starts a Ray for each module that needs one.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from runtime import VirtualWorker, WorkerHandle
from runtime.channels.ray import RayCluster
from runtime.federated import Population
from runtime.federated import events as E
from tests.federated.chaos import coordinator
from tests.federated.chaos import training as T
from tests.federated.chaos.processes import PATIENCE, Processes, RayFleet, WorkerFleet
from tests.federated.chaos.striking import Chaos, limit

LIMIT = 240
"""Seconds for one test: several times what it takes on a slow machine, so that only a hang takes longer."""


@pytest.fixture(scope="module")
def processes() -> Generator[Processes]:
    with Processes() as started:
        yield started


@pytest.fixture
def folder() -> Generator[Path]:
    """One whose name is short enough for sockets in it."""
    found = Path(tempfile.mkdtemp(prefix="pc-", dir="/tmp"))
    yield found
    shutil.rmtree(found)


@pytest.fixture(autouse=True)
def no_hang() -> Generator[None]:
    with limit(LIMIT):
        yield


def train(chaos: Chaos, at: Population, **options: Any) -> T.State:
    """The model after all rounds, with chaos meanwhile."""
    federation = T.federation(at, callbacks=[chaos], retries=5, **options)
    try:
        return federation.run(T.ROUNDS).state_dict()
    finally:
        federation.close()
        chaos.settle()


# -- workers at unix sockets ---------------------------------------------------------------------------------


def test_workers_that_are_killed_and_replaced_change_no_bit(processes: Processes, folder: Path) -> None:
    with WorkerFleet(processes, folder, 3) as fleet:
        at = T.population(fleet.workers)
        chaos = Chaos(fleet, at, 1)
        state = train(chaos, at, on_worker_lost=fleet.replace)
    chaos.check()
    chaos.check_strikes(least=8)
    assert all(not event.dropped for event in chaos.lost)
    assert T.same(state, T.undisturbed())


def test_workers_that_stay_away_for_some_rounds_change_no_bit(processes: Processes, folder: Path) -> None:
    with WorkerFleet(processes, folder, 3) as fleet:
        at = T.population(fleet.workers)
        chaos = Chaos(fleet, at, 3, every=(2, 4), absent=(2, 6))
        state = train(chaos, at)
    chaos.check()
    chaos.check_strikes(least=6)
    assert all(not event.dropped for event in chaos.lost)
    assert T.same(state, T.undisturbed())


def test_clients_that_are_dropped_cost_no_accuracy(processes: Processes, folder: Path) -> None:
    with WorkerFleet(processes, folder, 3) as fleet:
        at = T.population(fleet.workers)
        chaos = Chaos(fleet, at, 4, absent=(1, 3))
        state = train(chaos, at, on_failure="drop", quorum=0.1)
    chaos.check()
    chaos.check_strikes(least=6)
    assert any(event.dropped for event in chaos.lost)
    assert all(not event.rescheduled for event in chaos.lost)
    assert abs(T.accuracy(state) - T.accuracy(T.undisturbed())) <= 0.01


def test_empty_workers_that_come_back_at_the_same_place_change_no_bit(
    processes: Processes, folder: Path
) -> None:
    """A supervisor starts them while their channel tries still: nobody may take them for the old ones."""
    with WorkerFleet(processes, folder, 3, patience=PATIENCE) as fleet:
        at = T.population(fleet.workers)
        chaos = Chaos(fleet, at, 5, fleet.restart)
        state = train(chaos, at, on_worker_lost=lambda worker: fleet.connect(worker.id))
    chaos.check()
    assert chaos.lost
    assert T.same(state, T.undisturbed())


def test_workers_with_a_store_that_come_back_are_not_even_lost(processes: Processes, folder: Path) -> None:
    with WorkerFleet(processes, folder, 2, store=True, patience=PATIENCE) as fleet:
        at = T.population(fleet.workers)
        chaos = Chaos(fleet, at, 6, fleet.restart, again=True)
        state = train(chaos, at, client_state="kept")
    chaos.check()
    assert len(chaos.struck) >= 8
    assert chaos.lost == []
    assert T.same(state, T.undisturbed("kept"))


def test_workers_that_hang_and_answer_later_are_replaced_and_not_counted(
    processes: Processes, folder: Path
) -> None:
    with WorkerFleet(processes, folder, 3) as fleet:
        waking: list[threading.Timer] = []

        def stop(worker: WorkerHandle) -> None:
            fleet.signal(worker, signal.SIGSTOP)
            waking.append(threading.Timer(4.0, fleet.signal, [worker, signal.SIGCONT]))
            waking[-1].start()

        at = T.population(fleet.workers)
        chaos = Chaos(fleet, at, 7, stop, every=(9, 14))
        state = train(chaos, at, on_worker_lost=fleet.replace, patience=2.0)
        for timer in waking:
            timer.join()
    chaos.check()
    assert any("it hangs" in event.why for event in chaos.lost)
    assert T.same(state, T.undisturbed())


# -- workers on Ray ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Generator[RayCluster]:
    with RayCluster(workers=3, resources={"CPU": 0.1}) as started:
        yield started
        left = [worker.pid for worker in started]
    until = time.monotonic() + PATIENCE
    while any(is_alive(pid) for pid in left):
        assert time.monotonic() < until, f"of {left}, some are there still"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("absent", [None, (2, 5)], ids=["at once", "later"])
def test_actors_that_are_killed_change_no_bit(cluster: RayCluster, absent: tuple[int, int] | None) -> None:
    fleet = RayFleet(cluster)
    at = T.population(fleet.workers)
    chaos = Chaos(fleet, at, 8, every=(8, 12), absent=absent)
    state = train(chaos, at, on_worker_lost=fleet.replace if absent is None else None)
    chaos.check()
    chaos.check_strikes(least=2)
    assert all(not event.dropped for event in chaos.lost)
    assert T.same(state, T.undisturbed())


# -- the coordinator -----------------------------------------------------------------------------------------


def test_a_coordinator_that_is_killed_in_a_round_comes_to_the_same_bits(
    processes: Processes, folder: Path
) -> None:
    rounds, draw = 14, random.Random(9)
    d = T.digits()
    save_file({"x": d.x[:1200].contiguous(), "y": d.y[:1200].contiguous()}, folder / "digits.safetensors")
    T.plan().save(folder / "plan.planc")
    here: list[WorkerHandle] = [VirtualWorker("here")]
    undisturbed = coordinator.digest(coordinator.federation(folder, here).run(rounds).state_dict())
    with WorkerFleet(processes, folder, 2) as fleet:
        addresses = [fleet.address(worker.id) for worker in fleet.workers]
        arguments = [str(folder), str(rounds), *addresses]
        for number in range(3):
            out = folder / f"coordinator{number}"
            pid = processes.start(out, "tests.federated.chaos.coordinator", *arguments)
            until_in_round(out, draw.randint(2, 4), draw.uniform(0, 0.03))
            os.kill(pid, signal.SIGKILL)
            assert processes.wait(pid) == -signal.SIGKILL
        out = folder / "coordinator"
        pid = processes.start(out, "tests.federated.chaos.coordinator", *arguments)
        assert processes.wait(pid) == 0, out.read_text()
        for worker in fleet.workers:
            assert worker.objects, "what the dead sent lies there, until somebody of their name clears it"
            worker.clear_objects()
            assert not worker.objects
    events = out.read_text().splitlines()
    assert 0 < events.count(E.RoundDone.__name__) < rounds, (
        "it did not go on, or there was nothing left to do"
    )
    assert events[-1] == f"digest {undisturbed}"


def until_in_round(out: Path, rounds: int, seconds: float) -> None:
    """Until so many rounds have begun, and so long after the last of them did."""
    until = time.monotonic() + PATIENCE
    while not out.exists() or out.read_text().split().count(E.RoundStarted.__name__) < rounds:
        assert time.monotonic() < until, f"it did not come so far: {out.read_text()}"
        time.sleep(0.002)
    time.sleep(seconds)
