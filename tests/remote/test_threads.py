"""Sixteen threads on one worker: no reply is lost or crossed, and nothing is left behind."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import torch

import planc
import runtime
from runtime import VirtualWorker

THREADS, TURNS = 16, 30


def test_mixed_operations_of_many_threads(bob: VirtualWorker, alice: VirtualWorker) -> None:
    plan = planc.trace(lambda x, y: (x + y, x * y), torch.ones(3), torch.ones(3)).send(bob)
    start = Barrier(THREADS)

    def work(seed: int) -> None:
        start.wait()
        for turn in range(TURNS):
            n = float(seed * 1000 + turn)
            x = bob.send(torch.full((3,), n))
            y = x * 2 + 1
            y[0] = n
            total, product = plan(x, y)
            assert total.get().tolist() == [2 * n, 3 * n + 1, 3 * n + 1]
            assert product.copy_here()[0] == n * n
            w = bob.send(torch.full((2,), n, requires_grad=True))
            (w * w).sum().backward()
            assert w.grad is not None
            assert w.grad.get().tolist() == [2 * n, 2 * n]
            if turn % 5 == 0:
                with runtime.record():
                    z = (x + 1) * 2
                assert z.move(alice).get().tolist() == [2 * n + 2] * 3
            assert plan.submit(x, x).result()[0].get()[0] == 2 * n

    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(work, seed) for seed in range(THREADS)]:
            done.result()
    gc.collect()
    for worker in (bob, alice):
        worker.search("#none")
        assert len(worker.worker) == 0


def test_two_workers_that_send_to_each_other(bob: VirtualWorker, alice: VirtualWorker) -> None:
    def swing(pair: Any) -> float:
        x, home, away = pair
        for _ in range(40):
            x.move(away).move(home)
        return float(x.get())

    pairs = [
        (w.send(torch.tensor(float(i))), w, v) for i, (w, v) in enumerate([(bob, alice), (alice, bob)] * 4)
    ]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(swing, pairs)) == [float(i) for i in range(8)]
