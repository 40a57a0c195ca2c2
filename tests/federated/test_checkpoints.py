"""Checkpoints: written wholly or not at all, read back as they were, refused where they are not the run's."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planc.errors import InputError
from runtime.durable.files import Files
from runtime.errors import DiskFull, StorageError, StoreDamaged
from runtime.federated.checkpoints import Checkpoints, Restored, RunIdentity, Snapshot

RUN = RunIdentity("ab" * 32, 7, {"server": "FedAvg(lr=1.0)", "quorum": 0.8, "client_lr": None})


def model(value: float = 0.0) -> dict[str, torch.Tensor]:
    return {"fc.weight": torch.full((2, 3), value), "bn.count": torch.tensor(3)}


def snapshot(number: int) -> Snapshot:
    return Snapshot(
        number,
        model(number / 3),
        {"momentum/fc.weight": torch.arange(6.0).double().reshape(2, 3) / number},
        {4: {"exp_avg": torch.full((3,), float(number))}, 11: {"exp_avg": torch.zeros(0)}},
        {"key": torch.tensor(2**62 + number), "half": torch.ones(2).bfloat16(), "mask": torch.tensor([True])},
        {"history": [{"loss": float("nan"), "round": 1}, {"loss": 0.1}], "best": float("-inf")},
    )


def begun(folder: Path, **options: Any) -> Checkpoints:
    checkpoints = Checkpoints(folder, **options)
    checkpoints.begin(RUN, model(), resume=True)
    return checkpoints


def resumed(folder: Path, run: RunIdentity = RUN) -> Restored:
    restored = Checkpoints(folder).begin(run, model(), resume=True)
    assert restored is not None
    return restored


def assert_same(a: Snapshot, b: Snapshot) -> None:
    def tensors(s: Snapshot) -> dict[Any, torch.Tensor]:
        groups = {"model": s.model, "server": s.server, "more": s.more} | dict(s.clients)
        return {(name, path): t for name, group in groups.items() for path, t in group.items()}

    assert a.round == b.round
    assert tensors(a).keys() == tensors(b).keys()
    for name, tensor in tensors(a).items():
        assert tensor.dtype == tensors(b)[name].dtype
        assert torch.equal(tensor, tensors(b)[name])
    assert json.dumps(a.notes) == json.dumps(b.notes)


def test_a_checkpoint_is_read_back_as_it_was(tmp_path: Path) -> None:
    path = begun(tmp_path / "runs" / "x").save(snapshot(3))
    assert path == tmp_path / "runs" / "x" / "round-00000003.json"
    restored = resumed(tmp_path / "runs" / "x")
    assert_same(restored.snapshot, snapshot(3))
    assert (restored.path, restored.skipped) == (path, ())


def test_tensors_that_share_memory_or_are_views_are_saved(tmp_path: Path) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    begun(tmp_path).save(Snapshot(1, model(), {"a": base, "b": base.t(), "c": base[0]}))
    server = resumed(tmp_path).snapshot.server
    assert torch.equal(server["b"], base.t())
    assert torch.equal(server["c"], base[0])


def test_nothing_saved_yet_starts_from_the_beginning(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "new").begin(RUN, model(), resume=True) is None
    assert (tmp_path / "new").is_dir()


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    checkpoints = begun(tmp_path, every=5, keep=2)
    assert [n for n in range(1, 21) if checkpoints.due(n)] == [5, 10, 15, 20]
    for number in (5, 10, 15, 20):
        checkpoints.save(snapshot(number))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"round-000000{n}.{kind}" for n in (15, 20) for kind in ("json", "safetensors")
    ]


def test_a_run_from_the_beginning_does_not_mix_with_an_older_one(tmp_path: Path) -> None:
    begun(tmp_path).save(snapshot(3))
    with pytest.raises(StorageError, match=r"has checkpoints, the newest of round 3: resume=True"):
        Checkpoints(tmp_path).begin(RUN, model())
    assert_same(resumed(tmp_path).snapshot, snapshot(3))


def test_the_same_run_may_begin_again(tmp_path: Path) -> None:
    """``run(10)`` and then ``run(20)`` of one federation."""
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.begin(RUN, model()) is None
    checkpoints.save(snapshot(1))
    assert checkpoints.begin(RUN, model()) is None


@pytest.mark.parametrize(
    ("run", "found", "words"),
    [
        (RunIdentity("cd" * 32, 7, RUN.config), model(), "the plan was abababababab, is cdcdcdcdcdcd"),
        (RunIdentity(RUN.plan_id, 8, RUN.config), model(), "the seed was 7, is 8"),
        (
            RunIdentity(RUN.plan_id, 7, {**RUN.config, "server": "FedAdam"}),
            model(),
            r"server was FedAvg\(lr=1.0\), is FedAdam",
        ),
        (RunIdentity(RUN.plan_id, 7, {**RUN.config, "new": 1}), model(), "new was not there, is 1"),
        (RUN, {**model(), "fc.weight": torch.zeros(2, 4)}, r"fc.weight was f32\[2, 3\], is f32\[2, 4\]"),
        (RUN, {"fc.weight": torch.zeros(2, 3)}, r"the model's bn.count was i64\[\], is not there"),
    ],
)
def test_checkpoints_of_another_run_are_refused(
    tmp_path: Path, run: RunIdentity, found: dict[str, torch.Tensor], words: str
) -> None:
    begun(tmp_path).save(snapshot(3))
    with pytest.raises(StorageError, match=words):
        Checkpoints(tmp_path).begin(run, found, resume=True)


def test_the_one_before_is_taken_where_the_newest_is_damaged(tmp_path: Path) -> None:
    checkpoints = begun(tmp_path)
    for number in (1, 2, 3):
        checkpoints.save(snapshot(number))
    (tmp_path / "round-00000003.safetensors").write_bytes(b"")
    (tmp_path / "round-00000002.json").write_text("{}")
    restored = resumed(tmp_path)
    assert_same(restored.snapshot, snapshot(1))
    assert [(path.name, why) for path, why in restored.skipped] == [
        ("round-00000003.json", "its tensors are not what was written"),
        ("round-00000002.json", "its JSON is not what was written"),
    ]


def test_going_on_from_an_older_one_replaces_the_damaged_ones(tmp_path: Path) -> None:
    checkpoints = begun(tmp_path)
    for number in (1, 2, 3):
        checkpoints.save(snapshot(number))
    (tmp_path / "round-00000003.safetensors").unlink()
    (tmp_path / "round-00000002.json").write_text("[]")
    checkpoints = begun(tmp_path)
    checkpoints.save(snapshot(2))
    assert_same(resumed(tmp_path).snapshot, snapshot(2))
    assert resumed(tmp_path).skipped == ()


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_changed_byte_is_found(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("checkpoint")
    path = begun(folder).save(snapshot(3))
    target = data.draw(st.sampled_from([path, path.with_suffix(".safetensors")]))
    content = bytearray(target.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.sampled_from([len(content), place]))
    target.write_bytes(content[:cut])
    try:
        restored = resumed(folder)
    except (StoreDamaged, StorageError):
        return
    assert_same(restored.snapshot, snapshot(3))  # a blank of the JSON became another one


def test_all_damaged_says_so_and_why(tmp_path: Path) -> None:
    checkpoints = begun(tmp_path)
    checkpoints.save(snapshot(1))
    checkpoints.save(snapshot(2))
    (tmp_path / "round-00000001.json").write_bytes(b"\xff" * 10)
    (tmp_path / "round-00000002.safetensors").unlink()
    with pytest.raises(StoreDamaged, match=r"round-00000002.json: its tensors are missing; round-00000001"):
        resumed(tmp_path)


def test_a_newer_version_is_no_damage(tmp_path: Path) -> None:
    from runtime.federated import checkpoints as module

    path = begun(tmp_path).save(snapshot(3))
    content = json.loads(path.read_text())
    del content["digest"]
    content["version"] = 2
    path.write_text(json.dumps(content | {"digest": module._digest(content)}))
    with pytest.raises(StorageError, match="has version 2 of the format; this planc reads version 1"):
        resumed(tmp_path)


def test_json_that_is_sealed_but_no_checkpoint_is_damaged(tmp_path: Path) -> None:
    from runtime.federated import checkpoints as module

    path = begun(tmp_path).save(snapshot(3))
    content: dict[str, Any] = {"round": "three"}
    path.write_text(json.dumps(content | {"digest": module._digest(content)}))
    with pytest.raises(StoreDamaged, match="it is no checkpoint"):
        resumed(tmp_path)


class Failing(Files):
    """A disk on which the n-th operation fails."""

    def __init__(self, at: int, error: int = errno.ENOSPC) -> None:
        self.at = at
        self.error = error
        self.done = 0

    def _count(self) -> None:
        self.done += 1
        if self.done == self.at:
            raise OSError(self.error, os.strerror(self.error))

    def create(self, path: Path) -> int:
        self._count()
        return super().create(path)

    def write(self, descriptor: int, data: memoryview) -> int:
        self._count()
        return super().write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        self._count()
        super().sync(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        self._count()
        super().rename(old, new)

    def sync_folder(self, folder: Path) -> None:
        self._count()
        super().sync_folder(folder)


@pytest.mark.parametrize("at", range(1, 10))
def test_a_full_disk_leaves_the_one_before(tmp_path: Path, at: int) -> None:
    begun(tmp_path).save(snapshot(1))
    checkpoints = begun(tmp_path, keep=1, files=Failing(at))
    with pytest.raises(DiskFull, match="cannot save the checkpoint of round 2 in"):
        checkpoints.save(snapshot(2))
    assert_same(resumed(tmp_path).snapshot, snapshot(1))
    assert len(list(tmp_path.iterdir())) == 2, "nothing half-written is left"
    checkpoints.save(snapshot(2))
    assert_same(resumed(tmp_path).snapshot, snapshot(2))


def test_every_operation_of_a_save_was_tried(tmp_path: Path) -> None:
    files = Failing(10)
    begun(tmp_path, files=files).save(snapshot(1))
    assert files.done == 9


def test_other_faults_of_the_disk_are_storage_errors(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="Input/output error") as raised:
        begun(tmp_path, files=Failing(3, errno.EIO)).save(snapshot(1))
    assert not isinstance(raised.value, DiskFull)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot use the folder"):
        Checkpoints(tmp_path / "file").begin(RUN, model())


def test_what_a_killed_run_left_half_written_is_removed(tmp_path: Path) -> None:
    begun(tmp_path).save(snapshot(1))
    (tmp_path / "round-00000002.safetensors.tmp").write_bytes(b"half")
    (tmp_path / "round-00000002.safetensors").write_bytes(b"no json for it yet")
    (tmp_path / "notes.txt").write_text("mine")
    assert_same(resumed(tmp_path).snapshot, snapshot(1))
    begun(tmp_path).save(snapshot(2))
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix in (".tmp", ".txt")) == ["notes.txt"]
    assert_same(resumed(tmp_path).snapshot, snapshot(2))


@pytest.mark.parametrize("options", [{"every": 0}, {"keep": 0}, {"every": 1.5}])
def test_options_that_cannot_be_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="is a number of at least 1, got"):
        Checkpoints(tmp_path, **options)


def test_saving_needs_a_beginning(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="call begin before save"):
        Checkpoints(tmp_path).save(snapshot(1))
