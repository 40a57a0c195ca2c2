"""A run whose coordinator is killed with SIGKILL again and again, and resumed each time. Run by test_resume.

``python -m tests.federated.resuming FOLDER SEED`` prints, as JSON, what came of each kind: the digests of
the parameters with and without the kills, and how often it was killed. Each attempt is a process of its own,
forked from this one, which has torch loaded and runs nothing itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from runtime.federated import Buffered, Checkpoints, FedAdam, Federation, Population, Uniform
from runtime.federated.events import Event
from tests.federated import training as T

ROUNDS = 8
KINDS = ("kept", "buffered")
_ATTEMPTS = 60


def federation(kind: str, folder: Path, tell: int) -> Federation:
    """The run, from scratch; writes a byte a event into a pipe."""

    def callback(_: Event) -> None:
        os.write(tell, b".")

    at = Population.split(T.data(), T.CLIENTS, T.workers(2), seed=3)
    checkpoints = Checkpoints(folder)
    options = {"server": FedAdam(lr=0.05), "seed": 5, "checkpoints": checkpoints, "callbacks": [callback]}
    if kind == "buffered":
        return Buffered(T.plan(), at, concurrency=5, buffer=3, order="dispatch", **options)
    return Federation(T.plan(), at, sampling=Uniform(6), client_state=kind, **options)


def attempt(kind: str, folder: Path, kill: tuple[int, float] | None) -> str | None:
    """Run in a process of its own, killed after so many events and seconds; its digest if it ends."""
    events, tell = os.pipe()
    result, give = os.pipe()
    child = os.fork()
    if not child:
        try:
            state = federation(kind, folder, tell).run(ROUNDS, resume=True).state_dict()
            data = b"".join(state[path].numpy().tobytes() for path in sorted(state))
            os.write(give, hashlib.sha256(data).hexdigest().encode())
        finally:
            os._exit(0)
    os.close(tell)
    os.close(give)
    if kill is not None:
        left = kill[0]
        while left and (came := os.read(events, left)):
            left -= len(came)
        time.sleep(kill[1])
        os.kill(child, signal.SIGKILL)
    else:
        while os.read(events, 4096):
            pass
    digest = os.read(result, 64).decode()
    os.waitpid(child, 0)
    os.close(events)
    os.close(result)
    return digest or None


def killed(kind: str, folder: Path, draw: random.Random) -> dict[str, object]:
    undisturbed = attempt(kind, folder / kind / "undisturbed", None)
    for kills in range(_ATTEMPTS):
        digest = attempt(kind, folder / kind / "killed", (draw.randint(2, 14), draw.uniform(0, 0.02)))
        if digest is not None:
            return {"undisturbed": undisturbed, "killed": digest, "kills": kills}
    return {"undisturbed": undisturbed, "killed": None, "kills": _ATTEMPTS}


if __name__ == "__main__":
    torch.set_num_threads(1)
    T.plan()  # captured once, before any fork
    print(json.dumps({k: killed(k, Path(sys.argv[1]), random.Random(sys.argv[2])) for k in KINDS}))
