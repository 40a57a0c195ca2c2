"""Files of a run that somebody else wrote: checkpoints whose digests are right, events that no run gives."""

from __future__ import annotations

import io
import json
import shutil
import struct
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from planc.errors import DataError
from runtime.federated.checkpoints import Checkpoints, RunIdentity, Snapshot
from runtime.federated.events import RoundDone, RoundFailed, RunStarted
from runtime.federated.watch.history import History
from runtime.federated.watch.lines import line_of, read_lines
from runtime.federated.watch.progress import Progress
from runtime.federated.watch.report import render

RUN = RunIdentity("plan", 1, {})
MODEL = {"w": torch.zeros(3)}
NASTY = '"><script>alert(1)</script><img src=x>&$title\u202e\x1b]0;owned\x07\r\nround 1'


def saved(folder: Path) -> Checkpoints:
    """Checkpoints of rounds 1 and 2."""
    checkpoints = Checkpoints(folder)
    checkpoints.begin(RUN, MODEL)
    for number in (1, 2):
        checkpoints.save(Snapshot(number, MODEL, clients={3: {"m": torch.ones(2)}}))
    return Checkpoints(folder)


def forge(folder: Path, data: bytes | None = None, **fields: Any) -> None:
    """Give round 2 other tensors or fields, with digests that are right."""
    path = folder / "round-00000002.json"
    content = json.loads(path.read_text())
    del content["digest"]
    if data is not None:
        path.with_suffix(".safetensors").write_bytes(data)
        content["tensors"] = sha256(data).hexdigest()
    content.update(fields)
    plain = json.dumps(content, sort_keys=True, separators=(",", ":"))
    path.write_text(json.dumps(content | {"digest": sha256(plain.encode()).hexdigest()}))


def raw(dtype: str, shape: list[int], nbytes: int) -> bytes:
    header = json.dumps({"model/w": {"dtype": dtype, "shape": shape, "data_offsets": [0, nbytes]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(nbytes)


@pytest.mark.parametrize(
    ("data", "fields", "why"),
    [
        (safetensors.torch.save({"other/w": torch.zeros(3)}), {}, "it is no checkpoint"),
        (safetensors.torch.save({"clients/x/m": torch.zeros(3)}), {}, "it is no checkpoint"),
        (safetensors.torch.save({"model/w": torch.zeros(4)}), {}, "not those that its JSON names"),
        (safetensors.torch.save({}), {}, "not those that its JSON names"),
        (raw("F8_E8M0", [1], 1), {}, "it is no checkpoint"),
        (raw("C64", [1], 8), {}, "not those that its JSON names"),
        (raw("F32", [2**62, 0], 0), {}, "not those that its JSON names"),
        (raw("F32", [2**63, 2], 16), {}, "it is no checkpoint"),
        (None, {"round": 10**30}, "it is that of round 1000"),
        (None, {"round": -1}, "it is that of round -1"),
        (None, {"model": "w"}, "it is no checkpoint"),
    ],
)
def test_a_forged_checkpoint_is_damaged_and_an_older_one_is_taken(
    tmp_path: Path, data: bytes | None, fields: dict[str, Any], why: str
) -> None:
    checkpoints = saved(tmp_path)
    forge(tmp_path)
    restored = checkpoints.begin(RUN, MODEL, resume=True)
    assert restored is not None
    assert restored.snapshot.round == 2  # with the same content the forger's digests are believed
    forge(tmp_path, data, **fields)
    restored = checkpoints.begin(RUN, MODEL, resume=True)
    assert restored is not None
    assert restored.snapshot.round == 1
    ((path, said),) = restored.skipped
    assert path.name == "round-00000002.json"
    assert why in said


def test_a_checkpoint_under_another_rounds_name_is_not_taken(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path)
    for kind in ("json", "safetensors"):
        shutil.copy(tmp_path / f"round-00000001.{kind}", tmp_path / f"round-00000009.{kind}")
    restored = checkpoints.begin(RUN, MODEL, resume=True)
    assert restored is not None
    assert restored.snapshot.round == 2


def done(number: int, **fields: Any) -> RoundDone:
    plain: dict[str, Any] = {
        "seconds": 1.0,
        "contributions": 1,
        "weight": 1.0,
        "metrics": {"loss": 1.0},
        "evaluation": {},
        "messages": 1,
        "bytes_out": 1,
        "bytes_in": 1,
        "slowest": {"a": 1.0},
    }
    return RoundDone(number, **plain | fields)


def page(*events: Any) -> str:
    return render(History.of(events), NASTY)


def test_a_page_has_no_markup_and_nothing_invisible_that_a_worker_sent() -> None:
    begun = RunStarted(3, (NASTY,), 2, 1, NASTY, {NASTY: NASTY})
    names = {NASTY: 1.0}
    text = page(begun, done(1, metrics=names, evaluation=names, slowest=names), RoundFailed(2, NASTY))
    assert NASTY.encode("unicode_escape").decode()[-12:] in text
    for bad in ("<script>", "<img", "\u202e", "\x1b", "\x07", "\r"):
        assert bad not in text


@pytest.mark.parametrize(
    "fields",
    [
        {"metrics": {"loss": -1e308}},
        {"seconds": float("inf")},
        {"slowest": {"a": 1e308}},
        {"slowest": {"a": float("nan")}},
        {"bytes_in": 10**19},
    ],
)
def test_numbers_that_no_run_has_do_not_stop_it(fields: dict[str, Any]) -> None:
    others = {"metrics": {"loss": 1e308}} if "metrics" in fields else fields
    assert "Round by round" in page(done(1, **fields), done(2, **others), done(3))


def test_a_file_that_leaves_out_a_billion_rounds_takes_no_memory() -> None:
    assert "Every round in numbers" in page(done(1), done(10**12))


@pytest.mark.parametrize(
    "line",
    ["[" * 100_000, '{"a":' * 50_000, line_of(done(1)).replace('"messages":1', f'"messages":{10**4000}')],
)
def test_a_line_that_is_no_event_is_an_error_that_says_so(tmp_path: Path, line: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(DataError, match="line 1: expected an event of a run"):
        read_lines(path)


def test_the_terminal_shows_what_a_worker_sent_and_does_not_obey_it() -> None:
    out = io.StringIO()
    Progress(out)(RoundFailed(1, NASTY))
    assert out.getvalue().count("\n") == 1
    assert "\x1b" not in out.getvalue()
    assert "\\x1b]0;owned" in out.getvalue()
