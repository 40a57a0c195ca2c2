"""What is not as it was written is found at the start, by name, and what to do is said."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from planc.codec import encode, plan_id
from planc.ir.constants import digest
from runtime.durable.__main__ import main
from runtime.errors import ReplayError, StorageError, StoreDamaged, to_error
from runtime.messages import Failure, Get, Install, Put, PutItem, Slot
from runtime.worker import Worker
from tests.durable.helpers import Home, state
from tests.runtime.helpers import constant_sum

CONSTANT = torch.arange(40_000.0)
PLAN = constant_sum(CONSTANT)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Object 1 in file 1, object 2 in the index, a plan whose constant is in a file, and a large reply."""
    home = Home(tmp_path_factory.mktemp("durable") / "store")
    home.handle(1, Put((PutItem(1, Slot(0), ("#large",)),)), torch.ones(30_000))
    home.handle(2, Put((PutItem(2, Slot(0)),)), torch.ones(3))
    home.handle(3, Install(plan_id(PLAN), encode(PLAN), {digest(CONSTANT): Slot(0)}), CONSTANT)
    home.handle(4, Put((PutItem(3, Slot(0)),)), torch.ones(20_000))
    home.handle(5, Get((3,), True))
    home.worker._keeping.durable.records.put("approval", "p", 1)  # type: ignore[union-attr]
    home.worker._keeping.durable.commit()  # type: ignore[union-attr]
    home.worker.close()
    return home.folder


@pytest.fixture
def folder(filled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(filled, tmp_path / "store"))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


def change(folder: Path, statement: str, *values: object) -> None:
    connection = sqlite3.connect(folder / "index.sqlite")
    cursor = connection.execute(statement, values)
    assert cursor.rowcount
    connection.commit()
    connection.close()


def tensor_file(folder: Path, kind: str, which: int) -> Path:
    return sorted((folder / "tensors").glob(f"*.{kind}"))[which]


SMALL = "WHERE data IS NOT NULL AND kind='safetensors'"
DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: flip(tensor_file(f, "safetensors", 0), -1), "object 1: .*checksum"),
    (lambda f: flip(tensor_file(f, "safetensors", 0), 3), "object 1: .*checksum"),
    (lambda f: tensor_file(f, "safetensors", 0).unlink(), "object 1: file .*safetensors: it is missing"),
    (lambda f: tensor_file(f, "safetensors", 0).write_bytes(b"short"), "object 1: .*5 are there"),
    (lambda f: flip(tensor_file(f, "safetensors", 1), -1), f"plan {plan_id(PLAN)}: .*checksum"),
    (lambda f: flip(tensor_file(f, "frame", 0), 20), "the reply to request 5 of 'me'.*checksum"),
    (lambda f: change(f, "UPDATE objects SET row=replace(row, 'me', 'ann') WHERE id=2"), "object 2: its row"),
    (lambda f: change(f, "UPDATE plans SET plan=x'00'"), f"plan {plan_id(PLAN)}: its row"),
    (lambda f: change(f, "UPDATE records SET value='2'"), "record approval 'p'"),
    (lambda f: change(f, "UPDATE sessions SET settled=1"), "session 1 of 'me'"),
    (lambda f: change(f, f"UPDATE blobs SET digest=x'00' {SMALL}"), "object 2: its elements"),
    (lambda f: change(f, f"DELETE FROM blobs {SMALL}"), "object 2: its elements"),
    (lambda f: change(f, f"UPDATE blobs SET data=zeroblob(length(data)) {SMALL}"), "object 2: .*checksum"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGE)
def test_damage_is_found_and_can_be_dropped(
    folder: Path, damage: Callable[[Path], object], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(folder)
    for _ in range(2):  # to find it changes nothing
        with pytest.raises(StoreDamaged, match=said) as caught:
            Home(folder)
        assert "--drop" in str(caught.value)
        assert "--store at another folder" in str(caught.value)
    assert main([str(folder)]) == 1
    assert main([str(folder), "--drop"]) == 0
    assert "1 dropped" in capsys.readouterr().out
    home = Home(folder)
    kept = [id for id in (1, 2) if f"object {id}" not in said]
    assert sorted(home.worker._site.store) == kept
    home.restart()
    assert sorted(home.worker._site.store) == kept
    home.worker.close()
    assert main([str(folder)]) == 0


def test_a_reply_that_is_dropped_is_still_not_applied_again(folder: Path) -> None:
    flip(tensor_file(folder, "frame", 0), 20)
    assert main([str(folder), "--drop"]) == 0
    home = Home(folder)
    answer = home.handle(5, Get((3,), True))[0].body
    assert isinstance(answer, Failure)
    assert isinstance(to_error(answer), ReplayError)


def test_a_broken_index_is_said_to_be_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = folder / "index.sqlite"
    whole = index.read_bytes()
    zeroed = whole[:4096] + bytes(4096) + whole[8192:]
    for data in (b"not a database at all" * 100, whole[: len(whole) // 2], zeroed):
        for leftover in folder.glob("index.sqlite-*"):
            leftover.unlink()
        index.write_bytes(data)
        with pytest.raises(StoreDamaged, match="another folder"):
            Home(folder)
    assert main([str(folder), "--drop"]) == 2
    assert "index" in capsys.readouterr().err
    assert main([str(folder / "nothing")]) == 2


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "index.sqlite")
    connection.execute("CREATE TABLE letters (text)")
    connection.close()
    before = (tmp_path / "index.sqlite").read_bytes()
    with pytest.raises(StoreDamaged, match="something else"):
        Home(tmp_path)
    assert (tmp_path / "index.sqlite").read_bytes() == before


def test_a_newer_version_and_another_workers_store_are_refused(folder: Path) -> None:
    with pytest.raises(StorageError, match="belongs to worker 'bob', not 'alice'"):
        Worker("alice", durable=Home.store(folder))
    connection = sqlite3.connect(folder / "index.sqlite")
    connection.execute("PRAGMA user_version=2")
    connection.close()
    with pytest.raises(StorageError, match="version 2, this planc reads up to 1"):
        Home(folder)


def test_any_bit_that_flips_is_found_or_does_no_harm(folder: Path) -> None:
    """In the index, what SQLite does not use may change."""
    home = Home(folder)
    before = state(home.worker)
    home.worker.close()
    for path in (tensor_file(folder, "safetensors", 0), tensor_file(folder, "frame", 0)):
        for at in range(0, path.stat().st_size, path.stat().st_size // 10):
            flip(path, at)
            with pytest.raises(StoreDamaged):
                Home(folder)
            flip(path, at)
    index, found = folder / "index.sqlite", 0
    for at in range(40, index.stat().st_size, index.stat().st_size // 60):
        whole = index.read_bytes()
        flip(index, at)
        try:
            home = Home(folder)
        except StorageError:
            found += 1
        else:
            assert state(home.worker) == before
            home.worker.close()
        for leftover in folder.glob("index.sqlite-*"):
            leftover.unlink()
        index.write_bytes(whole)
    assert found
