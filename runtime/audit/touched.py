"""What a request looked at and what left, collected while it is handled. Writes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from runtime.store import Stored


@dataclass(frozen=True, slots=True)
class Left:
    """A tensor that leaves: what it is called, and the worker that it goes to ("" for who asked)."""

    name: str
    tensor: torch.Tensor
    to: str = ""


@dataclass(slots=True)
class Touched:
    """Of one request.

    Attributes:
        data: the objects that it looked at, by id.
        left: what left the worker, or is about to.
        previews: how many objects a listing showed the elements of.
        released: what left are results of private data, by an approval.
        plan_id: the plan that it is about.
    """

    data: dict[int, Stored] = field(default_factory=dict[int, Stored])
    left: list[Left] = field(default_factory=list[Left])
    previews: int = 0
    released: bool = False
    plan_id: str = ""
