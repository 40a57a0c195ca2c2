"""`Result`: what a federated run gave. Plain data."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from planc.plans import Plan
from planc.text.suggest import count_of
from runtime.federated.events import RoundDone


@dataclass(frozen=True)
class Result:
    """What a run gave.

    Attributes:
        plan: the clients' plan with the trained model as its state.
        rounds: all that were done, those before a stop included.
        why: it ended.
        seconds: that it took.
    """

    plan: Plan
    rounds: tuple[RoundDone, ...]
    why: str
    seconds: float

    def __repr__(self) -> str:
        """Short: the rounds are many."""
        figures = {**self.rounds[-1].metrics, **self.rounds[-1].evaluation} if self.rounds else {}
        last = "".join(f", {name} {value:.4g}" for name, value in figures.items())
        return f"<Result of {count_of(len(self.rounds), 'round')}: {self.why}{last}>"

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The model: parameters and buffers by path, as ``load_state_dict`` takes them (copies)."""
        return self.plan.state_dict()


__all__ = ["Result"]
