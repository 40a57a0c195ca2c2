"""Resumed runs: the parameters of one that was not interrupted, bit for bit, also after kill -9."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from planc.errors import InputError
from runtime import count_messages
from runtime.errors import DiskFull, StorageError, StoreDamaged
from runtime.federated import (
    Buffered,
    Checkpoints,
    Constant,
    FedAdam,
    FedAvg,
    FedAvgM,
    Federation,
    Median,
    Poisson,
    Population,
    Uniform,
)
from runtime.federated.events import CheckpointSaved, CheckpointSkipped, RoundDone, RunStarted
from tests.federated import training as T
from tests.federated.test_checkpoints import Failing

ROOT = Path(__file__).parents[2]


def split(workers: int = 2, clients: int = T.CLIENTS) -> Population:
    return Population.split(T.data(), clients, T.workers(workers), seed=3)


def made() -> Population:
    x, y = T.data()
    return Population.from_source(
        lambda c: (x[5 * c : 5 * c + 5], y[5 * c : 5 * c + 5]), [5.0] * 12, T.workers(2), cache_bytes=300
    )


def synchronous(folder: Path | None = None, at: Population | None = None, **options: Any) -> Federation:
    options = {"server": FedAdam(lr=0.05), "sampling": Uniform(5), "seed": 5} | options
    if folder is not None:
        options["checkpoints"] = Checkpoints(folder, every=options.pop("every", 1))
    return Federation(options.pop("plan", None) or T.plan(), at or split(), **options)


def buffered(folder: Path | None = None, at: Population | None = None, **options: Any) -> Buffered:
    options = {"concurrency": 5, "buffer": 3, "order": "dispatch", "seed": 5} | options
    if folder is not None:
        options["checkpoints"] = Checkpoints(folder, every=options.pop("every", 1))
    return Buffered(T.plan(), at or split(), **options)


RUNS: dict[str, Callable[..., Federation]] = {
    "fresh": lambda *a, **o: synchronous(*a, **o),
    "kept": lambda *a, **o: synchronous(*a, client_state="kept", **o),
    "median": lambda *a, **o: synchronous(*a, mean=Median(), server=FedAvgM(), sampling=Poisson(0.5), **o),
    "made": lambda folder=None, **o: synchronous(folder, made(), **o),
    "rates": lambda *a, **o: synchronous(*a, plan=T.plan(lr_input=True), client_lr=Constant(0.05), **o),
    "buffered": lambda *a, **o: buffered(*a, server=FedAdam(lr=0.05), **o),
    "buffered-kept": lambda *a, **o: buffered(*a, client_state="kept", **o),
}


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("stop", [2, 5])
def test_a_resumed_run_comes_to_the_same_bits(tmp_path: Path, kind: str, stop: int) -> None:
    make = RUNS[kind]
    through = make()
    through.run(7)
    make(tmp_path, every=2).run(stop)
    events, tell = T.watched()
    resumed = make(tmp_path, every=2, callbacks=[tell])
    result = resumed.run(7, resume=True)
    assert T.same(result.state_dict(), through.state_dict())
    assert T.same(resumed.server_state, through.server_state)
    (started,) = T.of(RunStarted, events)
    assert started.first == stop // 2 * 2 + 1
    assert [done.number for done in result.rounds] == list(range(1, 8))
    assert [done.metrics for done in result.rounds] == [done.metrics for done in through.history]
    assert [event.number for event in T.of(CheckpointSaved, events)] == [
        n for n in range(started.first, 8) if n % 2 == 0
    ]


def test_where_clients_are_may_change_between(tmp_path: Path) -> None:
    through = synchronous().run(6).state_dict()
    synchronous(tmp_path, split(2)).run(3)
    assert T.same(synchronous(tmp_path, split(3)).run(6, resume=True).state_dict(), through)


def test_to_resume_where_nothing_is_saved_is_to_start(tmp_path: Path) -> None:
    through = synchronous().run(2).state_dict()
    assert T.same(synchronous(tmp_path).run(2, resume=True).state_dict(), through)
    with pytest.raises(InputError, match="nothing to resume from"):
        synchronous().run(2, resume=True)


def test_all_rounds_being_done_is_nothing_to_do(tmp_path: Path) -> None:
    done = synchronous(tmp_path).run(3).state_dict()
    with count_messages() as sent:
        again = synchronous(tmp_path).run(3, resume=True)
    assert T.same(again.state_dict(), done)
    assert set(sent.by_kind) == {"Put"}, "clients got their data, and were asked nothing"


def test_a_damaged_checkpoint_costs_a_round_not_the_run(tmp_path: Path) -> None:
    through = synchronous().run(6).state_dict()
    synchronous(tmp_path).run(4)
    newest = tmp_path / "round-00000004.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    events, tell = T.watched()
    result = synchronous(tmp_path, callbacks=[tell]).run(6, resume=True)
    assert T.same(result.state_dict(), through)
    (skipped,) = T.of(CheckpointSkipped, events)
    assert (Path(skipped.path).name, skipped.why) == (
        "round-00000004.json",
        "its tensors are not what was written",
    )
    assert [done.number for done in T.of(RoundDone, events)] == [4, 5, 6]
    for path in tmp_path.glob("*.json"):
        path.write_text("{}")
    with pytest.raises(StoreDamaged, match="every checkpoint"):
        synchronous(tmp_path).run(6, resume=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 6}, "the seed was 5, is 6"),
        ({"server": FedAvg(lr=0.5)}, r"server was FedAdam\(.*\), is FedAvg\(lr=0.5\)"),
        ({"sampling": Uniform(6)}, r"sampling was Uniform\(count=5\), is Uniform\(count=6\)"),
        ({"mean": Median()}, "mean was WeightedMean"),
        ({"client_state": "kept"}, "client_state was fresh, is kept"),
        ({"plan": T.plan(shuffle=False)}, "the plan was"),
        ({"at": 11}, "population was"),
    ],
)
def test_another_run_is_not_gone_on_with(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    synchronous(tmp_path).run(1)
    if "at" in change:
        change = {"at": split(clients=change["at"])}
    with pytest.raises(StorageError, match=words):
        synchronous(tmp_path, **change).run(2, resume=True)


@pytest.mark.parametrize(
    "change", [{"concurrency": 4}, {"buffer": 4}, {"staleness": 0.0}, {"order": "arrival"}]
)
def test_nor_is_another_asynchronous_one(tmp_path: Path, change: dict[str, Any]) -> None:
    buffered(tmp_path).run(1)
    with pytest.raises(StorageError, match=f"{next(iter(change))} was"):
        buffered(tmp_path, **change).run(2, resume=True)
    with pytest.raises(StorageError, match="concurrency was 5, is not there"):
        synchronous(tmp_path).run(2, resume=True)


def test_settings_that_change_no_result_may_change(tmp_path: Path) -> None:
    through = synchronous().run(4).state_dict()
    synchronous(tmp_path).run(2)
    resumed = synchronous(tmp_path, deadline=5.0, quorum=0.5, retries=3, on_failure="drop")
    assert T.same(resumed.run(4, resume=True).state_dict(), through)


def test_a_new_run_does_not_write_over_an_older_one(tmp_path: Path) -> None:
    synchronous(tmp_path).run(2)
    with pytest.raises(StorageError, match="resume=True goes on"):
        synchronous(tmp_path).run(2)


def test_one_federation_may_go_on_by_itself(tmp_path: Path) -> None:
    through = synchronous().run(4).state_dict()
    run = synchronous(tmp_path)
    run.run(2)
    assert T.same(run.run(4).state_dict(), through)
    assert len(list(tmp_path.glob("*.json"))) == 3


def test_a_full_disk_ends_the_run_and_the_checkpoint_before_is_good(tmp_path: Path) -> None:
    through = synchronous().run(4).state_dict()
    checkpoints = Checkpoints(tmp_path, files=Failing(9 * 2 + 4))
    run = Federation(
        T.plan(), split(), server=FedAdam(lr=0.05), sampling=Uniform(5), seed=5, checkpoints=checkpoints
    )
    with pytest.raises(DiskFull, match="cannot save the checkpoint of round 3"):
        run.run(4)
    assert T.same(synchronous(tmp_path).run(4, resume=True).state_dict(), through)


def test_kept_states_are_fetched_by_one_message_a_worker(tmp_path: Path) -> None:
    run = synchronous(tmp_path, client_state="kept", every=2)
    run.run(1)
    with count_messages() as sent:
        run.run(2)
    assert sent.by_kind["Get"] == 2


def test_a_run_that_is_killed_again_and_again_comes_to_the_same_bits(tmp_path: Path) -> None:
    """The coordinator is killed with SIGKILL at random moments: in rounds, between, and in checkpoints."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.federated.resuming", str(tmp_path), "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for kind, came in json.loads(done.stdout).items():
        assert came["killed"] == came["undisturbed"], kind
        assert came["undisturbed"], kind
        assert came["kills"] >= 2, kind


def test_a_model_of_a_checkpoint_is_there_to_be_read(tmp_path: Path) -> None:
    """With nothing but safetensors."""
    from safetensors.torch import load_file

    result = synchronous(tmp_path).run(1)
    found = load_file(tmp_path / "round-00000001.safetensors")
    model = {name.removeprefix("model/"): t for name, t in found.items() if name.startswith("model/")}
    assert T.same(model, result.state_dict())
    T.network().load_state_dict(model)
    assert isinstance(next(iter(model.values())), torch.Tensor)
