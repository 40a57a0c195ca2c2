"""``python -m benchmarks.durable [--kills N]``: kill -9 a worker with a durable store again and again.

A child process runs the worker and acknowledges each request on a pipe; it is killed at random moments and
started again. What it then holds must be what the same requests make of a worker that was never killed: all
that was acknowledged, and of the request that it was at all or nothing. Also: what durability costs.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import multiprocessing
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

import torch

import planc
from planc.codec import encode as encode_plan
from planc.codec import plan_id
from planc.ir import Graph
from runtime.durable import DurableStore
from runtime.messages import (
    Apply,
    Backward,
    Body,
    Copy,
    Failure,
    Free,
    Get,
    Handle,
    Install,
    Keep,
    Put,
    PutItem,
    Reply,
    Request,
    RequireGrad,
    Return,
    Run,
    Slot,
    Step,
    Uninstall,
    Update,
    ZeroGrad,
)
from runtime.wire import decode, encode
from runtime.worker import Worker

_MOVE = """
plan move(param w: f32[64] "w", x: f32[64]) -> (moved: f32[64], param w_new: f32[64] "w") {
  return w + x, w - x
}
"""
_OTHER = "plan other(x: f32[64]) -> f32[64] { return x + x }"
_WEIGHTS, _COUNT, _LEAF = 1, 2, 3
_SIZES = (1, 64, 1000, 20_000, 20_000, 300_000)
"""Elements of what is put: for the index, for files that are shared, for a file of its own."""
_SETTLED = 3
"""How far behind the caller says which replies arrived."""
_AHEAD = 20
"""How many requests more than the killer waits for one life has: so that it is killed within one."""
_MANY = 30
"""Objects from which on some go."""
Made = tuple[Body, list[torch.Tensor]]


@functools.cache
def _graph(text: str) -> Graph:
    return planc.parse(text).graph


def _install(text: str) -> Made:
    return Install(plan_id(_graph(text)), encode_plan(_graph(text))), []


@dataclass
class Script:
    """Requests that are the same for a seed. Each changes something: to do one twice or never would show."""

    seed: int
    _made: list[Made] = field(default_factory=list)
    _ids: list[int] = field(default_factory=list)

    def frame(self, number: int) -> bytes:
        """Request ``number``, from 1."""
        while len(self._made) < number:
            self._made.append(self._make(len(self._made) + 1))
        body, tensors = self._made[number - 1]
        return bytes(encode(Request("me", 1, number, max(number - _SETTLED, 0), (), body), tensors))

    def _make(self, number: int) -> Made:
        if number == 1:
            return Put((PutItem(_WEIGHTS, Slot(0)), PutItem(_COUNT, Slot(1)))), [torch.ones(64)] * 2
        if number == 2:
            return Put((PutItem(_LEAF, Slot(0), requires_grad=True),)), [torch.zeros(1)]
        if number == 3:
            return _install(_MOVE)
        random_ = random.Random(self.seed * 1_000_003 + number)
        kinds = (self._put, self._run, self._run, self._count, self._drop, self._drop, self._plan, self._grad)
        kind = self._drop if len(self._ids) > _MANY else random_.choice(kinds)
        return kind(number, random_)

    def _new(self, number: int, count: int = 1) -> list[int]:
        ids = [1000 * number + i for i in range(count)]
        self._ids += ids
        return ids

    def _put(self, number: int, random_: random.Random) -> Made:
        sizes = [random_.choice(_SIZES) for _ in range(random_.randint(1, 3))]
        ids = self._new(number, len(sizes))
        items = tuple(PutItem(id, Slot(i), (f"#{number}",)) for i, id in enumerate(ids))
        return Put(items), [torch.full((size,), float(number)) for size in sizes]

    def _run(self, number: int, random_: random.Random) -> Made:
        wish = Keep(self._new(number)[0]) if random_.random() < 0.5 else Return()
        x = torch.full((64,), float(number % 7 + 1))
        return Run(plan_id(_graph(_MOVE)), (Handle(_WEIGHTS), Slot(0)), (wish,), (Update(),)), [x]

    def _count(self, _number: int, _random: random.Random) -> Made:
        return Apply("aten.add", (Handle(_COUNT), 1), {}, (_COUNT,), False), []

    def _drop(self, number: int, random_: random.Random) -> Made:
        if not self._ids:
            return self._count(number, random_)
        id = self._ids[random_.randrange(len(self._ids))]
        if random_.random() < 0.3:
            return Copy((id,), tuple(self._new(number))), []
        self._ids.remove(id)
        return (Free((id,)) if random_.random() < 0.6 else Get((id,), True)), []

    def _plan(self, number: int, _random: random.Random) -> Made:
        return _install(_OTHER) if number % 2 else (Uninstall((plan_id(_graph(_OTHER)),)), [])

    def _grad(self, _number: int, random_: random.Random) -> Made:
        """A leaf's own backward pass adds one to its gradient."""
        kind = random_.random()
        if kind < 0.5:
            return Backward(_LEAF), []
        if kind < 0.8:
            return Step("opt.sgd", {}, 0.1, (_LEAF,), ((), ())), []
        return (ZeroGrad((_LEAF,)) if kind < 0.9 else RequireGrad((_LEAF,), True)), []


def state(worker: Worker) -> str:
    """All that a worker holds, as a digest."""
    digest = hashlib.sha256()
    store, shelf = worker._site.store, worker._site.shelf
    for id in sorted(store):
        stored = store.get(id)
        assert stored is not None
        value = stored.value
        secrecies = [(s.private, s.derived, sorted(s.allowed)) for s in (stored.secrecy, stored.grad_secrecy)]
        digest.update(repr((id, stored.owner, stored.tags, stored.description, secrecies)).encode())
        if not isinstance(value, torch.Tensor):
            digest.update(repr(value).encode())
        if isinstance(value, torch.Tensor):
            digest.update(repr((value.dtype, value.shape, value.is_leaf and value.requires_grad)).encode())
            for tensor in (value, value.grad if value.is_leaf else None):
                digest.update(b"-" if tensor is None else _bytes(tensor))
    for id, plan in shelf.search((), "me"):
        digest.update(repr((id, sorted(plan.clients), list(plan.tags), plan.description)).encode())
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data


def _life(folder: str, seed: int, numbers: range, pipe: Pipe) -> None:
    """One life of the worker: says what it holds, then applies requests and acknowledges each, and waits."""
    torch.set_num_threads(1)
    script = Script(seed)
    script.frame(numbers[0])  # made before: the time of a start is the worker's
    start = time.perf_counter()
    worker = Worker("bob", durable=DurableStore(folder))
    took = time.perf_counter() - start
    pipe.send_bytes(json.dumps({"took": took, "state": state(worker)}).encode())
    for number in numbers:
        message, _ = decode(worker.handle_frame(script.frame(number)))
        failed = isinstance(message, Reply) and isinstance(message.body, Failure)
        pipe.send_bytes(repr(message).encode() if failed else str(number).encode())
    time.sleep(3600)


@dataclass
class Outcome:
    """What many lives came to."""

    kills: int = 0
    acknowledged: int = 0
    done: int = 0
    """Kills after which the request that was not acknowledged had been applied."""
    lost: int = 0
    torn: int = 0
    starts: list[float] = field(default_factory=list)


def kill_again_and_again(kills: int, seed: int, folder: Path, most: int = 30) -> Outcome:
    """Kill a worker and start it again, comparing what it holds with a worker that lives on.

    Args:
        kills: how often.
        seed: of the requests and of the moments.
        folder: for its store.
        most: requests of one life at most.

    Raises:
        RuntimeError: a request failed that does not fail without a store.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["runtime", "runtime.durable"])
    outcome, random_ = Outcome(), random.Random(seed)
    twin, script = Worker("bob"), Script(seed)
    states = [state(twin)]
    for life in range(kills + 1):
        ours, theirs = context.Pipe(duplex=False)
        first = outcome.acknowledged + 1
        args = (str(folder), seed, range(first, first + most + _AHEAD), theirs)
        child = context.Process(target=_life, args=args, daemon=True)
        while len(states) <= outcome.acknowledged + 1:  # first: the child does not wait for us
            twin.handle_frame(script.frame(len(states)))
            states.append(state(twin))
        child.start()
        theirs.close()
        started = json.loads(ours.recv_bytes())
        outcome.starts.append(started["took"])
        _judge(outcome, states, started["state"])
        if life < kills:
            _serve(outcome, ours, random_.randint(0, most))
            time.sleep(random_.random() * 0.004)
        os.kill(child.pid or 0, signal.SIGKILL)
        outcome.kills += life < kills
        with contextlib.suppress(EOFError):
            while True:
                _note(outcome, ours.recv_bytes())
        child.join()
        ours.close()
    return outcome


def _judge(outcome: Outcome, states: Sequence[str], found: str) -> None:
    at = outcome.acknowledged
    if found == states[at + 1] != states[at]:
        outcome.done += 1
    elif found in states[:at] and found != states[at]:
        outcome.lost += 1
    elif found != states[at]:
        outcome.torn += 1


def _serve(outcome: Outcome, pipe: Pipe, count: int) -> None:
    for _ in range(count):
        _note(outcome, pipe.recv_bytes())


def _note(outcome: Outcome, said: bytes) -> None:
    if not said.isdigit():
        raise RuntimeError(f"a request failed: {said.decode()}")
    outcome.acknowledged = int(said)


def costs(folder: Path, rounds: int = 200) -> dict[str, float]:
    """The median time of a message in seconds, with a durable store and without, and of the disk alone."""
    out: dict[str, float] = {}
    for name in ("without", "with"):
        worker = Worker("bob", durable=DurableStore(folder) if name == "with" else None)
        script = Script(0)
        for number in (1, 2, 3):
            worker.handle_frame(script.frame(number))
        run = Run(plan_id(_graph(_MOVE)), (Handle(_WEIGHTS), Slot(0)), (Return(),), (Update(),))
        times: dict[str, list[float]] = {"a Run message": [], "an eager Apply": [], "a Get": []}
        for i in range(rounds):
            bodies = (run, Apply("aten.add", (Handle(_COUNT), 1), {}, (_COUNT,), False), Get((_COUNT,)))
            for k, (what, body) in enumerate(zip(times, bodies, strict=True)):
                number = 4 + 3 * i + k
                tensors = [torch.ones(64)] if body is run else []
                frame = encode(Request("me", 1, number, number - 1, (), body), tensors)
                start = time.perf_counter()
                worker.handle_frame(frame)
                times[what].append(time.perf_counter() - start)
        out.update({f"{what}, {name}": statistics.median(taken) for what, taken in times.items()})
        worker.close()
    out["a write and fsync of 4 KiB"] = _fsync(folder / "probe", rounds)
    return out


def _fsync(path: Path, rounds: int) -> float:
    times: list[float] = []
    with path.open("wb", buffering=0) as file:
        for _ in range(rounds):
            start = time.perf_counter()
            file.write(bytes(4096))
            os.fsync(file.fileno())
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.durable", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="how often the worker is killed (200)")
    parser.add_argument("--seed", type=int, default=0, help="of the requests and of the moments (0)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        outcome = kill_again_and_again(options.kills, options.seed, Path(folder, "killed"))
        took = time.perf_counter() - start
        print(
            f"{outcome.kills} kills in {took:.0f} s, {outcome.acknowledged} requests acknowledged: "
            f"lost {outcome.lost}, torn {outcome.torn}"
        )
        print(
            f"the request that was not acknowledged had been applied {outcome.done} times, and was not again"
        )
        starts = [1e3 * seconds for seconds in outcome.starts[1:]]
        print(f"start after a kill: {statistics.median(starts):.0f} ms median, {max(starts):.0f} ms at most")
        for what, seconds in costs(Path(folder, "costs")).items():
            print(f"{what}: {1e6 * seconds:.0f} us")
    return 1 if outcome.lost or outcome.torn else 0


if __name__ == "__main__":
    sys.exit(main())
