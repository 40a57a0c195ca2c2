"""What a request looked at and what left, collected while it is handled. Writes nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from runtime.store import Stored


@dataclass(frozen=True, slots=True)
class Left:
    """A tensor that leaves: what it is called, and the worker that it goes to ("" for who asked)."""

    name: str
    tensor: torch.Tensor
    to: str = ""


class Touched:
    """Of one request.

    Attributes:
        data: the objects that it looked at, by id.
        left: what left the worker, or is about to.
        previews: how many objects a listing showed the elements of.
        released: what left are results of private data, by an approval.
        plan_id: the plan that it is about.
    """

    __slots__ = ("data", "left", "plan_id", "previews", "released")

    def __init__(self) -> None:
        self.data: dict[int, Stored] = {}
        self.left: list[Left] = []
        self.previews = 0
        self.released = False
        self.plan_id = ""
