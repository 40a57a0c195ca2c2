"""docs/ops.md is what the table says, and what it says is not covered is refused with the error named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import planc
from planc.errors import CaptureError
from planc.ops import all_ops
from planc.ops.document import NOT_COVERED, document
from tests.ops.layers import UNCOVERED
from tests.ops.training import bundle, total

PAGE = Path(__file__).parents[2] / "docs" / "ops.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == document(), "run: python -m planc.ops.document docs/ops.md"


def test_the_page_has_every_op() -> None:
    rows = [line for line in document().splitlines() if line.startswith("| `")]
    assert {row[3:].split("(")[0] for row in rows} >= {op.name for op in all_ops()}


@pytest.mark.parametrize("name", sorted({*UNCOVERED, *NOT_COVERED}))
def test_what_is_not_covered_is_refused_as_the_page_says(name: str) -> None:
    net = bundle({name: UNCOVERED[name]})
    with pytest.raises(CaptureError) as caught:
        planc.train_step(net, total, torch.optim.SGD(net.parameters(), lr=0.1), net.batch(7, 0), targets=0)
    assert NOT_COVERED[name][1] in str(caught.value)
