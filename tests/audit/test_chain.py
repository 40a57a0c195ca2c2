"""The audit log as a file: every kind of tampering is found, crashes are not taken for it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.audit.chain import Head, Verified, encode_head, head_path, read_head, segments, verify
from runtime.audit.log import AuditLog
from runtime.errors import AuditFailed


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def write(path: Path, count: int = 10, **options: object) -> Head:
    log = AuditLog(path, **options)  # type: ignore[arg-type]
    for i in range(count):
        log.append({"kind": "run", "who": "ann", "value": i})
    head = Head(*log.head)
    log.close()
    return head


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def test_what_is_written_is_good_and_numbered(path: Path) -> None:
    head = write(path)
    found = verify(path)
    assert (found.good, found.lines, found.first, found.head) == (True, 10, 1, head)
    assert not found.notes
    entry = json.loads(lines(path)[3])
    assert (entry["n"], entry["value"], entry["who"]) == (4, 3, "ann")
    assert lines(path)[3] == (json.dumps(entry, sort_keys=True, separators=(",", ":")) + "\n").encode()
    assert path.stat().st_mode & 0o777 == 0o600


def test_it_goes_on_after_it_was_closed(path: Path) -> None:
    write(path)
    write(path)
    found = verify(path)
    assert (found.good, found.lines, found.notes) == (True, 20, [])


def altered(old: list[bytes]) -> list[bytes]:
    return [*old[:4], old[4].replace(b'"ann"', b'"eve"'), *old[5:]]


TAMPERINGS: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str]] = {
    "altered": (altered, "the line before, 5, was altered"),
    "the last altered": (lambda old: [*old[:-1], old[-1].replace(b"ann", b"eve")], "the last, was altered"),
    "the first altered": (lambda old: [old[0].replace(b"ann", b"eve"), *old[1:]], "line before, 1, was"),
    "removed": (lambda old: [*old[:4], *old[5:]], "line 6 follows line 4"),
    "several removed": (lambda old: [*old[:2], *old[7:]], "line 8 follows line 2"),
    "swapped": (lambda old: [*old[:4], old[5], old[4], *old[6:]], "line 6 follows line 4"),
    "repeated": (lambda old: [*old[:4], old[3], *old[4:]], "line 4 follows line 4"),
    "put in": (
        lambda old: [*old[:4], old[4].replace(b"ann", b"eve"), *old[4:]],
        "follows line 5: lines were removed, put in or moved",
    ),
    "cut off": (lambda old: old[:-1], "lines at the end are missing"),
    "all cut off": (lambda old: [], "lines at the end are missing"),
    "begins later, renumbered": (
        lambda old: [old[1].replace(b'"n":2', b'"n":1'), *old[2:]],
        "the first line does not begin a log",
    ),
    "torn in the middle": (lambda old: [*old[:4], old[4][:20] + b"\n", *old[5:]], "this is no entry"),
    "garbage put in": (lambda old: [*old[:4], b"{}\n", *old[4:]], "this is no entry"),
}


@pytest.mark.parametrize("how", TAMPERINGS)
def test_tampering_is_found(path: Path, how: str) -> None:
    write(path)
    change, said = TAMPERINGS[how]
    path.write_bytes(b"".join(change(lines(path))))
    found = verify(path)
    assert not found.good
    assert any(said in problem for problem in found.problems), found.problems


@given(place=st.integers(0, 10_000), flip=st.integers(1, 255))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_changed_byte_is_found(path: Path, place: int, flip: int) -> None:
    if not path.exists():
        write(path, 5)
    good = path.read_bytes()
    data = bytearray(good)
    data[place % len(data)] ^= flip
    try:
        path.write_bytes(data)
        assert not verify(path).good
    finally:
        path.write_bytes(good)


def test_a_head_that_is_missing_or_made_anew_is_found(path: Path) -> None:
    head = write(path)
    head_path(path).unlink()
    assert any("missing" in problem for problem in verify(path).problems)
    # Who can write both can cut off the end; a head that was kept elsewhere shows it.
    kept = lines(path)[:6]
    path.write_bytes(b"".join(kept))
    forged = verify(path).head
    head_path(path).write_bytes(encode_head(forged))
    assert verify(path).good
    assert any("its end was cut off" in problem for problem in verify(path, head).problems)
    assert verify(path, forged).good
    assert any("witness" in p for p in verify(path, Head(6, "0" * 64)).problems)


def test_a_log_that_was_damaged_while_the_worker_was_down_says_so_for_ever(path: Path) -> None:
    write(path)
    path.write_bytes(b"".join(lines(path)[:-3]))
    write(path)
    found = verify(path)
    assert any("did not end as it had left it (it had written line 10)" in each for each in found.problems)
    assert found.lines == 7 + 1 + 10


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_a_torn_last_line_is_marked_and_the_chain_goes_on(path: Path, cut: int) -> None:
    write(path)
    head = read_head(path)
    with AuditLogOpen(path) as log:
        log.append({"kind": "get"})
    head_path(path).write_bytes(encode_head(head))  # type: ignore[arg-type]
    data = path.read_bytes()
    path.write_bytes(data[:-cut])  # as a crash leaves it: the head is written after the line
    assert verify(path).good
    write(path, 3)
    found = verify(path)
    assert found.good
    if cut == 1:  # only the end of the line was missing
        assert (found.lines, found.notes) == (14, [])
    else:
        assert (found.lines, len(found.notes)) == (10 + 1 + 3, 1)
        assert "torn" in found.notes[0]


def test_a_crash_between_a_line_and_the_head_is_no_damage(path: Path) -> None:
    write(path)
    before = read_head(path)
    write(path, 1)
    head_path(path).write_bytes(encode_head(before))  # type: ignore[arg-type]
    assert verify(path).good
    write(path, 1)
    found = verify(path)
    assert (found.good, found.lines, found.notes) == (True, 12, [])


def test_segments_are_one_chain(path: Path) -> None:
    write(path, 100, max_bytes=2000)
    files = segments(path)
    assert len(files) > 5
    assert files[-1] == path
    assert [each.name for each in files[:2]] == ["audit.jsonl.000001", "audit.jsonl.000002"]
    assert all(each.stat().st_size <= 2000 for each in files)
    write(path, 100, max_bytes=2000)
    found = verify(path)
    assert (found.good, found.lines) == (True, 200)
    files[3].unlink()
    assert not verify(path).good


def test_segments_that_were_put_away_are_missed_but_nothing_more(path: Path) -> None:
    write(path, 100, max_bytes=2000)
    segments(path)[0].unlink()
    found = verify(path)
    assert found.good
    assert "older segments are not here" in found.notes[0]


def test_a_crash_while_rotating_loses_nothing(path: Path) -> None:
    write(path, 10)
    os.rename(path, path.with_name(f"{path.name}.000001"))
    write(path, 10)
    found = verify(path)
    assert (found.good, found.lines, found.notes) == (True, 20, [])


def test_what_cannot_be_written_leaves_the_log_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path)
    with AuditLogOpen(path) as log:
        real = os.write

        def full(descriptor: int, data: bytes) -> int:
            if len(data) > 40:
                return real(descriptor, bytes(data)[:40])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "write", lambda d, data: full(d, data) if len(data) != 41 else real(d, data))
        with pytest.raises(AuditFailed, match="No space left on device"):
            log.append({"kind": "run", "who": "a name that makes the line longer than eighty bytes" * 3})
        monkeypatch.setattr(os, "fdatasync", broken)
        monkeypatch.setattr(os, "write", real)
        with pytest.raises(AuditFailed, match="Input/output"):
            log.append({"kind": "run"}, leaves=True)
        monkeypatch.undo()
        assert verify(path).good
        log.append({"kind": "run"})
    found = verify(path)
    assert (found.good, found.lines, found.notes) == (True, 11, [])


def broken(_descriptor: int) -> None:
    raise OSError(5, "Input/output error")


def test_what_leaves_is_on_the_disk_itself(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    for fsync, count in ((True, 1), (False, 0)):
        synced.clear()
        log = AuditLog(path, fsync=fsync)
        log.append({"kind": "list"})
        log.append({"kind": "get"}, leaves=True)
        log.close()
        assert len(synced) == count


def test_one_process_writes_it(path: Path) -> None:
    with AuditLogOpen(path), pytest.raises(AuditFailed, match="another process"):
        AuditLog(path)
    write(path)
    with pytest.raises(AuditFailed, match="cannot be opened"):
        AuditLog(path.parent / "none" / "audit.jsonl")
    log = AuditLog(path)
    log.close()
    with pytest.raises(AuditFailed, match="closed"):
        log.append({})


def test_many_threads_make_one_chain(path: Path) -> None:
    with AuditLogOpen(path) as log:
        threads = [
            threading.Thread(target=lambda: [log.append({"kind": "x"}) for _ in range(50)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = verify(path)
    assert (found.good, found.lines) == (True, 200)


KILLED = """
import sys
from pathlib import Path
from runtime.audit.log import AuditLog
log = AuditLog(Path(sys.argv[1]), max_bytes=20_000, fsync=False)
i = 0
while True:
    log.append({"kind": "run", "who": "x" * (i % 300)})
    i += 1
    print(log.head[0], flush=True)
"""


def test_it_survives_kill_9(path: Path) -> None:
    for _ in range(2):
        command = [sys.executable, "-c", KILLED, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as process:
            assert process.stdout is not None
            for _ in range(200):
                acknowledged = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            printed = process.stdout.read().split(b"\n")[:-1]  # the last may be cut
        found = verify(path)
        assert found.good, found.problems
        assert found.head.n >= int(printed[-1] if printed else acknowledged)


class AuditLogOpen:
    """A log that is closed at the end of the block."""

    def __init__(self, path: Path) -> None:
        self.log = AuditLog(path)

    def __enter__(self) -> AuditLog:
        return self.log

    def __exit__(self, *_: object) -> None:
        self.log.close()


def test_a_copy_can_be_checked_elsewhere(path: Path, tmp_path: Path) -> None:
    write(path, 100, max_bytes=2000)
    elsewhere = tmp_path / "copy"
    elsewhere.mkdir()
    for file in (*segments(path), head_path(path)):
        shutil.copy(file, elsewhere)
    found: Verified = verify(elsewhere / path.name)
    assert (found.good, found.lines) == (True, 100)
