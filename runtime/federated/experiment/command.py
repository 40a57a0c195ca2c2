"""`planc run FILE.toml`: from the file to the trained model, and what a run leaves in its folder."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import safetensors.torch

from planc.draw.figures import size
from planc.text.suggest import count_of
from runtime.demo.metering import one_thread
from runtime.federated.events import Callback
from runtime.federated.experiment import sections as S
from runtime.federated.experiment.assembly import CHECKPOINTS, LoadPlan, check, make_federation, make_plans
from runtime.federated.experiment.data import Data, find_there, read_here
from runtime.federated.experiment.describe import Outline, outline
from runtime.federated.experiment.engines import Engine, started
from runtime.federated.experiment.file import Loaded, load
from runtime.federated.experiment.keys import plain
from runtime.federated.experiment.toml import dumps
from runtime.federated.proximal import unwrapped
from runtime.federated.result import Result
from runtime.federated.watch import JsonLines, Progress, Report, TensorBoard, read_lines
from runtime.federated.watch.history import all_measured

EVENTS, REPORT, BOARD = "events.jsonl", "report.html", "tensorboard"
MODEL, CONFIG = "model.safetensors", "experiment.toml"


@dataclass(frozen=True)
class Finished:
    """A run that is over: what it gave, and its folder."""

    result: Result
    folder: Path

    def lines(self) -> list[str]:
        """What came out, for people."""
        last = self.result.rounds[-1] if self.result.rounds else None
        out = [f"{count_of(len(self.result.rounds), 'round')}: {self.result.why}"]
        if last is not None:
            measured = all_measured(last)
            width = max(24, *map(len, measured)) if measured else 24
            out += [f"  {name:<{width}} {value:.4f}" for name, value in measured.items()]
            traffic = sum(done.bytes_out + done.bytes_in for done in self.result.rounds)
            out.append(f"  {'messages':<{width}} {sum(done.messages for done in self.result.rounds):,}")
            out.append(f"  {'bytes, both ways':<{width}} {size(traffic)}")
        return [*out, f"wrote {self.folder / MODEL}"]


def run(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    load_plan: LoadPlan,
    screen: TextIO | None = None,
) -> Finished:
    """Run the experiment in a file.

    Args:
        path: of the file.
        overrides: entries ``table.key=value``, which go before the file.
        resume: go on after the last checkpoint, whatever the file says.
        load_plan: reads a plan that the file names.
        screen: where progress is shown; standard error if not given.

    Raises:
        ExperimentError: the file does not say what can be run.
        PlancError: data, plans or workers cannot be used, or a round failed.
        OSError: a file cannot be read or written.
    """
    loaded = load(path, overrides)
    check(loaded)
    resume = resume or loaded.experiment.run.resume
    _check_folder(loaded, resume)
    with ExitStack() as stack:
        stack.enter_context(one_thread())  # so that the model does not depend on how many cores there are
        data = _here(loaded)
        engine = stack.enter_context(started(loaded.experiment.workers, loaded.path.parent))
        found = data or _there(loaded, engine)
        plans = make_plans(loaded, found, load_plan)
        callbacks = _watchers(loaded, resume, screen, stack)
        federation = make_federation(loaded, found, plans, engine, callbacks)
        stack.callback(federation.close)
        # Not before: an experiment that cannot begin leaves nothing.
        _begin_folder(loaded, resume)
        result = federation.run(loaded.experiment.run.rounds, resume=resume)
    tensors = {path: tensor.contiguous() for path, tensor in unwrapped(result.state_dict()).items()}
    _write(loaded.output / MODEL, safetensors.torch.save(tensors))
    return Finished(result, loaded.output)


def dry_run(path: Path, overrides: Sequence[str] = (), *, load_plan: LoadPlan) -> Outline:
    """What `run` would do: nothing is trained, sent or written.

    Data at workers has to be asked for what it is like, which takes two messages a worker; other workers are
    not called at all.

    Raises:
        ExperimentError, PlancError, OSError: as for `run`.
    """
    loaded = load(path, overrides)
    check(loaded)
    data = _here(loaded)
    if data is not None:
        return outline(loaded, data, make_plans(loaded, data, load_plan))
    with started(loaded.experiment.workers, loaded.path.parent) as engine:
        found = _there(loaded, engine)
        return outline(loaded, found, make_plans(loaded, found, load_plan))


def _here(loaded: Loaded) -> Data | None:
    section = loaded.experiment.data
    if isinstance(section, S.AtWorkers):
        return None
    return read_here(section, loaded.path.parent, loaded.experiment.run.seed)


def _there(loaded: Loaded, engine: Engine) -> Data:
    section = loaded.experiment.data
    assert isinstance(section, S.AtWorkers), "other data is here"
    return find_there(section, engine.workers)


def _left(loaded: Loaded) -> list[str]:
    """What a run has left in the folder."""
    mine = (EVENTS, REPORT, MODEL, CONFIG, BOARD, CHECKPOINTS)
    return [name for name in mine if (loaded.output / name).exists()]


def _check_folder(loaded: Loaded, resume: bool) -> None:
    """Refuse a folder that has a run in it, which is neither resumed nor overwritten.

    Raises:
        ExperimentError: it is.
    """
    there = _left(loaded)
    if there and not resume and not loaded.experiment.run.overwrite:
        raise loaded.error(
            "run.output",
            f"{loaded.output} has the results of a run in it: {', '.join(there)}",
            "--resume goes on with it; --set run.overwrite=true begins anew; or name another folder",
        )


def _begin_folder(loaded: Loaded, resume: bool) -> None:
    """Make the folder, with nothing of another run in it, and write the settings there."""
    folder = loaded.output
    for name in [] if resume else _left(loaded):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / CONFIG, dumps(plain(loaded.experiment)).encode())


def _watchers(loaded: Loaded, resume: bool, screen: TextIO | None, stack: ExitStack) -> list[Callback]:
    """Who is told of the run; what they have open is closed with the stack."""
    watch, folder = loaded.experiment.watch, loaded.output
    before = read_lines(folder / EVENTS) if resume and watch.report and (folder / EVENTS).exists() else []
    out: list[Callback] = []
    if watch.progress:
        progress = Progress(screen)
        stack.callback(progress.close)
        out.append(progress)
    if watch.lines:
        lines = JsonLines(folder / EVENTS)
        stack.callback(lines.close)
        out.append(lines)
    if watch.tensorboard:
        board = TensorBoard(folder / BOARD)
        stack.callback(board.close)
        out.append(board)
    if watch.report:
        out.append(Report(folder / REPORT, loaded.name, before=before))
    return out


def _write(path: Path, data: bytes) -> None:
    """Write a file wholly or not at all."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


__all__ = ["Finished", "dry_run", "run"]
