"""Runs the programs of this folder, each with its tool's own Python, and reads what they found.

``make bench-peers`` makes the environments. A program gets the name of a scenario and a file with the first
parameters, and prints one line of JSON: its tool's version, the seconds of each round, a file of parameters.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.scenarios import Scenario

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".venv-peers"
PEERS = {"Flower": "flower", "pfl": "pfl"}
"""By a tool's name, its program here and its environment in FOLDER."""
LIMIT = 600
"""Seconds that a program may take."""


@dataclass(frozen=True)
class Ran:
    """What a program found: the seconds of rounds after the first, and the model after the compared ones."""

    version: str
    times: tuple[float, ...]
    state: dict[str, torch.Tensor]

    @property
    def median(self) -> float:
        return statistics.median(self.times)


def run(peer: str, key: str, scenario: Scenario, quick: bool, compared: int) -> Ran | str:
    """The rounds of a scenario by another tool; or why there is no figure."""
    program = PEERS[peer]
    python = Path(os.environ.get("PLANC_PEERS", FOLDER)) / program / "bin" / "python"
    if not python.exists():
        return "not installed (make bench-peers)"
    with tempfile.TemporaryDirectory() as folder:
        given, kept = Path(folder, "given.pt"), Path(folder, "kept.pt")
        torch.save(scenario.module().state_dict(), given)
        wanted = {
            "scenario": key,
            "quick": quick,
            "given": str(given),
            "kept": str(kept),
            "compared": compared,
            "rounds": compared + (2 if quick else 5),
            "threads": torch.get_num_threads(),
        }
        command = [str(python), "-m", f"benchmarks.peers.{program}_rounds", json.dumps(wanted)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(wanted["threads"])}
        try:
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT
            )
        except subprocess.TimeoutExpired:
            return f"did not finish within {LIMIT} s"
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            return f"failed: {last[:200]}"
        found = json.loads(done.stdout.strip().splitlines()[-1])
        return Ran(found["version"], tuple(found["times"][1:]), torch.load(kept, weights_only=True))
