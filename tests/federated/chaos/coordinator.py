"""A coordinator that is a process, to be killed. Run by test_chaos.

``python -m tests.federated.chaos.coordinator FOLDER ROUNDS ADDRESS...`` goes on with the run whose plan,
data and checkpoints are in the folder. Prints a line an event, and the digest of the model at the end.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

import planc
from runtime import WorkerHandle, connect
from runtime.federated import Checkpoints, FedAdam, Federation, Population, Uniform
from runtime.federated.events import Event

CLIENTS = 12


def digest(state: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256(b"".join(state[path].numpy().tobytes() for path in sorted(state))).hexdigest()


def federation(folder: Path, workers: list[WorkerHandle], **options: object) -> Federation:
    """The run, from its beginning: with a state at the server, and one at each client."""
    data = load_file(folder / "digits.safetensors")
    at = Population.split((data["x"], data["y"]), CLIENTS, workers, seed=3)
    plan = planc.load(folder / "plan.planc")
    server, sampling = FedAdam(lr=0.02), Uniform(6)
    return Federation(plan, at, server=server, sampling=sampling, seed=3, client_state="kept", **options)


def main(folder: Path, rounds: int, addresses: list[str]) -> None:
    def tell(event: Event) -> None:
        print(type(event).__name__)

    workers = [connect(address) for address in addresses]
    checkpoints = Checkpoints(folder / "checkpoints", every=2)
    run = federation(folder, workers, checkpoints=checkpoints, callbacks=[tell])
    print("digest", digest(run.run(rounds, resume=True).state_dict()))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
