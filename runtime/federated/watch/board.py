"""A run's figures for TensorBoard, which is another package: the extra ``tensorboard``."""

from __future__ import annotations

import os
from typing import Any

from planc.errors import PlancError
from runtime.federated.events import Event, RoundDone, RoundFailed, RunDone, RunStarted
from runtime.federated.watch.history import History

_MISSING = (
    "TensorBoard's files need the extra 'tensorboard' ({} is missing): pip install 'planc[tensorboard]'"
)


class TensorBoard:
    """A callback that writes a point a round of every metric and figure.

    Args:
        folder: where TensorBoard looks for runs: ``tensorboard --logdir FOLDER`` shows them.

    Raises:
        PlancError: the package is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise PlancError(_MISSING.format(error.name or "tensorboard")) from None
        self._make = SummaryWriter
        self._folder = os.fspath(folder)
        self._writer: Any = None
        self._history = History()

    def __call__(self, event: Event) -> None:
        self._history.add(event)
        match event:
            case RunStarted():
                self.close()
                # What was written of the rounds that come again is not shown.
                self._writer = self._make(self._folder, purge_step=event.first)
                rows = "\n".join(f"| {key} | {value} |" for key, value in event.config.items())
                self._writer.add_text("config", f"| key | value |\n| --- | --- |\n{rows}")
            case RoundDone():
                self._scalars(event.number, self._figures(event))
            case RoundFailed():
                self._scalars(event.number, {"round/failed": 1.0})
            case RunDone():
                self.close()
            case _:
                pass

    def close(self) -> None:
        """Write what is waiting, and close the files."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _figures(self, done: RoundDone) -> dict[str, float]:
        record = self._history.rounds[done.number]
        return {
            **{f"training/{name}": value for name, value in done.metrics.items()},
            **{f"evaluation/{name}": value for name, value in done.evaluation.items()},
            **{f"slowest/{worker}": value for worker, value in done.slowest.items()},
            "clients/done": done.contributions,
            "clients/failed": len(record.failed),
            "clients/late": record.late,
            "clients/dropped": record.dropped,
            "round/messages": done.messages,
            "round/bytes out": done.bytes_out,
            "round/bytes in": done.bytes_in,
            "round/seconds": done.seconds,
        }

    def _scalars(self, number: int, figures: dict[str, float]) -> None:
        if self._writer is None:
            return
        for name, value in figures.items():
            self._writer.add_scalar(name, value, number)
        self._writer.flush()


__all__ = ["TensorBoard"]
