"""`planc demo`: the flow from images to report, its files, and what happens on Ctrl-C."""

from __future__ import annotations

import errno
import json as json_module
import os
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.filesize import decimal

import planc
from planc.errors import InputError
from runtime.demo.comparison import Comparison, Way
from runtime.demo.engines import Engine, workers_on
from runtime.demo.metering import one_thread
from runtime.demo.mnist import MnistSplit, load_directory, load_embedded
from runtime.demo.network import capture_step, make_network
from runtime.demo.report import render
from runtime.demo.results import Results, count
from runtime.demo.screen import Screen
from runtime.demo.training import Settings, Setup, Trained, set_up, train
from runtime.remote import WorkerHandle

INTERRUPTED = 130

# Enough for 0.95 on the embedded images, with room; the full set has fifteen times as many a round.
_ROUNDS, _ROUNDS_OF_FULL_SET = 10, 3
_LARGE = 10_000
_REPEATS = 2


@dataclass(slots=True)
class Run:
    """One run of the demo: where its files go, and how far it has come.

    Attributes:
        engine: where the workers run.
        trained: the rounds that are done.
        saved: whether the model file holds the model of the last of them.
    """

    settings: Settings
    split: MnistSplit
    source: str
    screen: Screen
    report: Path
    model_out: Path
    start: float
    engine: Engine
    trained: list[Trained] = field(default_factory=list[Trained])
    saved: bool = False


def demo(
    workers: int = 4,
    rounds: int | None = None,
    seed: int = 0,
    data: Path | None = None,
    download: bool = False,
    json: bool = False,
    report: Path = Path("planc-demo.html"),
    model_out: Path = Path("planc-demo-model.pt"),
    batch_size: int = 64,
    engine: str = Engine.IN_PROCESS,
) -> int:
    """Train the tutorial's network on real MNIST images that stay at their workers; compare the ways.

    Args:
        workers: how many share the training images.
        rounds: of federated averaging; by default as many as reach 0.95 on held-out images.
        seed: of the split, the network and the order of the images.
        data: a folder with the IDX files of MNIST; the 5,000 embedded images where not given.
        download: fetch the files into ``data`` if they are missing.
        json: print one JSON object on standard output, and nothing else there.
        report: where the HTML page goes.
        model_out: where the model's ``state_dict`` goes, as ``torch.save`` writes it.
        batch_size: images a step.
        engine: where the workers run: ``in-process``, or ``ray``. The model is the same, bit for bit.

    Returns:
        The exit code: 0, or 130 after Ctrl-C.

    Raises:
        InputError: a number is out of range, or there is no such engine, or it is not installed.
        ConnectionLost: workers on Ray did not start.
        DataError: the images are missing or corrupt.
        OSError: a file cannot be written.
    """
    start = time.perf_counter()
    _check(workers=workers, rounds=1 if rounds is None else rounds, batch_size=batch_size)
    if engine not in list(Engine):
        raise InputError(f"engine is one of {', '.join(Engine)}, got {engine!r}")
    if download and data is None:
        raise InputError("--download needs --data DIR: the folder that the files go to")
    for path in (report, model_out):
        _check_writable(path)
    run: Run | None = None
    with Screen(json) as screen, ExitStack() as stack:
        try:
            with screen.task("reading the images"):
                split = load_embedded(seed=seed) if data is None else load_directory(data, download)
            if rounds is None:
                rounds = _ROUNDS if len(split.train_y) < _LARGE else _ROUNDS_OF_FULL_SET
            settings = Settings(workers, rounds, seed, batch_size)
            source = "real MNIST images" if data is None else f"MNIST images from {data}"
            run = Run(settings, split, source, screen, report, model_out, start, Engine(engine))
            with screen.task("starting the workers"):
                started = stack.enter_context(workers_on(run.engine, workers))
            results = execute(run, started)
        except KeyboardInterrupt:
            message = "interrupted: nothing was saved" if run is None else _stopped(run)
            print(message, file=sys.stderr)
            return INTERRUPTED
    if json:
        print(json_module.dumps(results.json(model_out, report), indent=2))
    return 0


def execute(run: Run, workers: Sequence[WorkerHandle]) -> Results:
    """The whole run: capture, training, the model file, the comparison, the report."""
    screen, settings, split = run.screen, run.settings, run.split
    with one_thread():
        network = make_network(settings.seed)
        with screen.task("capturing the training step"):
            began = time.perf_counter()
            step = capture_step(network)
        captured = time.perf_counter() - began
        with screen.task("sending images and plan to the workers"):
            setup = set_up(settings, split, step, workers)
        _introduce(run, setup, captured)
        _train(run, setup)
        _save_model(run)
        repeats = _REPEATS if len(split.train_y) < _LARGE else 1
        ways = _compare(run, setup, step, repeats)
    results = Results(
        settings,
        run.source,
        len(split.train_y),
        len(split.test_y),
        setup.plan,
        setup.sending,
        setup.installing,
        tuple(run.trained),
        ways,
        repeats,
        time.perf_counter() - run.start,
        run.engine,
    )
    screen.comparison(results)
    page = render(results).encode()
    _write(run.report, lambda path: path.write_bytes(page))
    screen.line()
    screen.line(
        f"Held-out accuracy {results.accuracy:.1%} after {count(len(run.trained), 'round', 'rounds')}."
    )
    screen.path("model: ", run.model_out)
    screen.path("report:", run.report)
    return results


def _introduce(run: Run, setup: Setup, captured: float) -> None:
    workers = count(run.settings.workers, "worker", "workers")
    rows = [len(shard) for shard in setup.dataset.shards]
    each = f"{rows[-1]:,}" if rows[0] == rows[-1] else f"{rows[-1]:,} or {rows[0]:,}"
    screen, plan = run.screen, setup.plan
    where = " on Ray" if run.engine is Engine.RAY else ""
    screen.line(f"data    {len(run.split.train_y):,} {run.source} at {workers}{where}, {each} each;")
    screen.line(f"        {len(run.split.test_y):,} held out, which stay here")
    screen.line(
        f"plan    {plan.name}, {plan.graph.count_nodes()} nodes, {decimal(len(plan.bytes))}, "
        f"captured in {captured:.1f} s"
    )
    screen.line(f"        id {plan.id[:16]}")
    screen.round_header()


def _train(run: Run, setup: Setup) -> None:
    total = run.settings.rounds
    with run.screen.task("training", total) as task:
        for trained in train(setup, run.split, total):
            run.trained.append(trained)
            run.screen.round(trained, decimal(trained.figures.bytes))
            task.advance()


def _compare(run: Run, setup: Setup, step: planc.Plan, repeats: int) -> list[Way]:
    settings = run.settings
    comparison = Comparison(
        setup.dataset, run.split, step, setup.plan, run.trained[-1].model, settings.batch_size, settings.seed
    )
    ways: list[Way] = []
    with run.screen.task("measuring") as task:
        for title, way in comparison.stages(repeats):
            task.rename(title)
            if way is not None:
                ways.append(way)
    return ways


def _stopped(run: Run) -> str:
    """Save what there is, and say so."""
    done, total = len(run.trained), run.settings.rounds
    if not done:
        return "interrupted before the first round was done: nothing was saved"
    if not run.saved:
        _save_model(run)
    last = run.trained[-1]
    return (
        f"interrupted after round {last.number} of {total}: the model so far "
        f"(held-out accuracy {last.held_out.accuracy:.1%}) is in {run.model_out}; no report was written"
    )


def _save_model(run: Run) -> None:
    model = run.trained[-1].model
    _write(run.model_out, lambda path: torch.save(model, path))
    run.saved = True


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file wholly or not at all."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _check(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise InputError(f"{name} must be at least 1, got {number}")


def _check_writable(path: Path) -> None:
    """Before minutes of work, not after: that a file can be written there.

    Raises:
        OSError: its folder is missing or may not be written to, or it is a folder itself.
    """
    folder = path.absolute().parent
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder; give the name of a file", str(path))
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(folder))
    if not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, "the folder cannot be written to", str(folder))


__all__ = ["INTERRUPTED", "Run", "demo", "execute"]
