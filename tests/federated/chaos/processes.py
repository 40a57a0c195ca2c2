"""Fleets of workers that are processes, to be killed: `planc worker` at unix sockets, and actors of a Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Protocol

from runtime import WorkerHandle, connect
from runtime.channels.ray import RayCluster, RayWorker

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
PATIENCE = 60.0
"""Seconds for a process to get ready, or to end: machines that run tests are slow at times."""


class Processes:
    """Starts processes, and ends all of them with the block."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        command = [sys.executable, "-m", "tests.federated.chaos.forking"]
        self._parent = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=ROOT
        )

    def start(self, out: Path, module: str, *args: str) -> int:
        """``python -m module args``, what it prints in a file. Its process id."""
        return self._ask("start", str(out), module, *args)

    def wait(self, pid: int) -> int:
        """How a process ended; minus the signal that killed it."""
        return self._ask("wait", pid)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.close()
        assert self._parent.wait(PATIENCE) == 0, "it ends when all that it started have ended"
        self._parent.stdout.close()

    def _ask(self, *words: str | int) -> int:
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        with self._lock:
            self._parent.stdin.write(json.dumps(words) + "\n")
            self._parent.stdin.flush()
            return int(self._parent.stdout.readline())


class Fleet(Protocol):
    """Workers that can be killed, and others in their place."""

    workers: list[WorkerHandle]

    def signal(self, worker: WorkerHandle, number: int) -> None:
        """Send a signal to a worker's process."""
        ...

    def replace(self, worker: WorkerHandle) -> WorkerHandle:
        """A new worker, with nothing in it, for one that is gone."""
        ...


class WorkerFleet:
    """`planc worker` processes, each at a socket.

    Args:
        processes: where they are started.
        folder: for their sockets and stores; its name has to be short.
        count: how many there are at first.
        store: whether each keeps what it holds on the disk.
        patience: seconds in which a process that is gone may come back.

    Attributes:
        workers: handles to those that were started first.
        pids: the processes that run the workers, by id.
    """

    def __init__(
        self,
        processes: Processes,
        folder: Path,
        count: int,
        *,
        store: bool = False,
        patience: float = 1.0,
    ) -> None:
        self._processes = processes
        self._folder = folder
        self._store = store
        self._patience = patience
        self._started = 0
        self._restarting = threading.Lock()
        self.pids: dict[str, int] = {}
        self._handles: list[WorkerHandle] = []
        ids = [f"g{i}" for i in range(count)]
        for id in ids:
            self.start(id)
        self.workers = [self.connect(id) for id in ids]

    def start(self, id: str) -> None:
        """Start a worker's process, at the socket that it had if it had one, without waiting for it."""
        self._started += 1
        keep = ["--store", str(self._folder / f"{id}.store")] if self._store else []
        self.pids[id] = self._processes.start(
            self._out(id),
            "planc",
            *(
                "worker",
                "--id",
                id,
                "--listen",
                self.address(id),
                "--socket",
                str(self._folder / f"{id}.own"),
            ),
            *("--log-level", "error", *keep),
        )

    def address(self, id: str) -> str:
        """Where a worker listens."""
        return f"unix:{self._folder / id}"

    def connect(self, id: str) -> WorkerHandle:
        """A handle to a worker, once it is there."""
        until = time.monotonic() + PATIENCE
        while "clients connect with" not in (said := self.said(id)):
            assert time.monotonic() < until, f"worker {id} did not start: {said}"
            time.sleep(0.02)
        self._handles.append(connect(self.address(id), worker=id, patience=self._patience))
        return self._handles[-1]

    def restart(self, worker: WorkerHandle) -> None:
        """Kill a worker's process and start another where it was, as a supervisor would."""
        with self._restarting:
            kill(self, worker)
            assert self._processes.wait(self.pids[worker.id]) == -signal.SIGKILL
            self._out(worker.id).unlink(missing_ok=True)
            self.start(worker.id)

    def said(self, id: str) -> str:
        """What a worker printed."""
        return self._out(id).read_text() if self._out(id).exists() else ""

    def signal(self, worker: WorkerHandle, number: int) -> None:
        os.kill(self.pids[worker.id], number)

    def replace(self, worker: WorkerHandle) -> WorkerHandle:
        id = f"g{self._started}"
        self.start(id)
        return self.connect(id)

    def __enter__(self) -> WorkerFleet:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.close()

    def _out(self, id: str) -> Path:
        return self._folder / f"{id}.out"


class RayFleet:
    """The workers of a Ray cluster."""

    def __init__(self, cluster: RayCluster) -> None:
        self._cluster = cluster
        self.workers: list[WorkerHandle] = list(cluster.workers)

    def signal(self, worker: WorkerHandle, number: int) -> None:
        assert isinstance(worker, RayWorker)
        os.kill(worker.pid, number)

    def replace(self, worker: WorkerHandle) -> WorkerHandle:
        assert isinstance(worker, RayWorker)
        return self._cluster.replace(worker)


def kill(fleet: Fleet, worker: WorkerHandle) -> None:
    """End a worker's process, as a crash or the system's killer would."""
    fleet.signal(worker, signal.SIGKILL)


__all__ = ["PATIENCE", "Fleet", "Processes", "RayFleet", "WorkerFleet", "kill"]
