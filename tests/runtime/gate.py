"""A runner of plans that lets a test do something while one of them runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

import planc
from planc.lower import ExecutableCache

T = TypeVar("T")


class Gate:
    """Runs plans slowly enough to let others in; the plan that is held waits in the middle."""

    def __init__(self) -> None:
        self._cache = ExecutableCache()
        self._held = ""
        self._began, self._go = threading.Event(), threading.Event()

    def run(self, plan_id: str, *rest: Any, **how: Any) -> list[torch.Tensor]:
        time.sleep(0.001)
        if plan_id == self._held:
            self._began.set()
            assert self._go.wait(30)
        return self._cache.run(plan_id, *rest, **how)

    def during(self, plan: planc.Plan, run: Callable[[], T], others: Callable[[], Any]) -> T:
        """What a run of the plan comes to while others do something."""
        self._held = plan.id
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(run)
            assert self._began.wait(30)
            try:
                others()
            finally:
                self._go.set()
            return running.result()
