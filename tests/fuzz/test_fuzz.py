"""A short run of every layer of the fuzz target, and that its checks can fail."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from runtime import messages as m
from runtime.wire import encode
from tests.fuzz.corpus import corpus
from tests.fuzz.mutate import Mutator
from tests.fuzz.running import Run, dump, replay
from tests.fuzz.scene import CANARY, Escaped, leaks
from tests.fuzz.targets import check_reply


@pytest.mark.parametrize(
    ("layer", "cases"), [("frames", 2000), ("chunks", 2000), ("streams", 100), ("sockets", 600)]
)
def test_nothing_gets_through(layer: str, cases: int, tmp_path: Path) -> None:
    out = Run(layer, seed=7, folder=tmp_path).run(cases)
    assert dict(out.problems) == {}
    assert out.cases == cases


def test_the_corpus_has_every_message() -> None:
    assert corpus().kinds == {body.__name__ for body in m.Body.__args__}  # type: ignore[attr-defined]


def test_a_seed_makes_the_same_cases() -> None:
    first, second = (Mutator(random.Random(5), corpus()) for _ in range(2))
    assert [first.case() for _ in range(200)] == [second.case() for _ in range(200)]


def test_private_elements_would_be_found() -> None:
    secret = torch.full((2,), CANARY, dtype=torch.float64)
    for tensor in (secret, secret.float()):
        frame = encode(m.Reply(1, m.Values((m.Slot(0),))), [tensor])
        assert leaks(frame)
        with pytest.raises(Escaped, match="private"):
            check_reply(frame)
    assert leaks(repr(secret.tolist()).encode())


def test_a_fault_of_the_worker_would_be_found() -> None:
    with pytest.raises(Escaped, match="fault"):
        check_reply(encode(m.Reply(1, m.Failure("internal", "boom"))))
    with pytest.raises(Escaped, match="unknown kind"):
        check_reply(encode(m.Reply(1, m.Failure("new", "boom"))))


def test_a_case_that_was_kept_is_tried_again(tmp_path: Path) -> None:
    case = Mutator(random.Random(5), corpus()).case()
    path = tmp_path / "case.json"
    path.write_text(dump(case, "frames", 5, 0, 3, "none"))
    assert replay(path) is None
