"""What workers offer in the tests. A module of its own: each worker imports it, and nothing more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def offered(worker: str) -> Mapping[str, torch.Tensor | tuple[torch.Tensor, list[str]]]:
    """What each worker of the tests' cluster has from the start."""
    rows = torch.arange(6.0).reshape(3, 2) + ord(worker[0])
    return {"rows": rows, "labels": (torch.tensor([0, 1, 2]), ["#train"])}


def refuses(worker: str) -> Any:
    raise FileNotFoundError(f"no images for {worker}")


def of_no_plan(worker: str) -> Any:
    return {"x": torch.zeros(2, dtype=torch.complex64)}
