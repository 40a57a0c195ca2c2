"""`Settings`: what a federated round does about time and faults. Values only, checked once."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, get_args

from planc.errors import InputError
from runtime.federated.events import Setting

Late = Literal["drop", "use"]
OnFailure = Literal["reschedule", "drop", "fail"]
ClientState = Literal["fresh", "kept"]
Reduce = Literal["direct", "tree"]


@dataclass(frozen=True)
class Settings:
    """How rounds treat time and faults.

    Attributes:
        quorum: the part of the cohort that has to contribute, counted in clients, above 0 and at most 1. (Not
            in weights: one client of much data could else be a quorum alone.)
        deadline: seconds for the clients' work in a round. Clients that are not done then are late.
        grace: seconds beyond the deadline in which replies are still waited for.
        patience: seconds without a reply after which a worker counts as hung. By default a round waits for it
            until the deadline and the grace, when nothing can be done about its clients any more; give what
            is more than a worker needs for its part of a cohort, and they are rescheduled in time.
        late: what becomes of a worker that has not answered at the end of a round. "drop": it counts as hung,
            and is lost. "use": it gets one round more; see `runtime.federated.late`.
        on_failure: what becomes of the clients of a lost worker. "reschedule": other workers do them, in the
            same round. "drop": they do not count. "fail": the round fails.
        retries: how many times a client is rescheduled in a round.
        client_state: "fresh": the optimizer's state (all that is neither parameter, buffer nor key) starts
            anew in every round. "kept": it stays at the worker from a client's round to its next one.
        reduce: how the workers' sums become one. "direct": each comes here. "tree": workers add them up two
            by two, and one comes here, by more messages; they have to be able to send to each other.
    """

    quorum: float = 0.8
    deadline: float = 600.0
    grace: float = 5.0
    patience: float | None = None
    late: Late = "drop"
    on_failure: OnFailure = "reschedule"
    retries: int = 1
    client_state: ClientState = "fresh"
    reduce: Reduce = "direct"

    def __post_init__(self) -> None:
        if not 0 < self.quorum <= 1:
            raise InputError(
                f"quorum is the part of the cohort that has to contribute, above 0 and at most 1, got "
                f"{self.quorum}"
            )
        for name, value in (("deadline", self.deadline), ("patience", self.patience)):
            if value is not None and not 0 < value < math.inf:
                raise InputError(
                    f"{name} is a number of seconds above 0, not infinite, since a round has to end; got "
                    f"{value}"
                )
        if not 0 <= self.grace < math.inf:
            raise InputError(f"grace is a number of seconds from 0, not infinite, got {self.grace}")
        if self.retries < 0:
            raise InputError(f"retries is a count from 0, got {self.retries}")
        for name, value, allowed in (
            ("late", self.late, get_args(Late)),
            ("on_failure", self.on_failure, get_args(OnFailure)),
            ("client_state", self.client_state, get_args(ClientState)),
            ("reduce", self.reduce, get_args(Reduce)),
        ):
            if value not in allowed:
                raise InputError(f"{name} is one of {', '.join(map(repr, allowed))}, got {value!r}")

        if self.reduce == "tree" and self.late == "use":
            raise InputError(
                "late='use' takes sums that come a round too late, but with reduce='tree' they are gone by "
                "then: take late='drop', or reduce='direct'"
            )

    def needed(self, cohort: int) -> int:
        """How many clients of a cohort have to contribute."""
        # Not a client more for the last bit of 0.7 * 10.
        return max(1, math.ceil(self.quorum * cohort - 1e-9)) if cohort else 0

    def config(self) -> dict[str, Setting]:
        """All of them, by name."""
        return dataclasses.asdict(self)


__all__ = ["ClientState", "Late", "OnFailure", "Reduce", "Settings"]
