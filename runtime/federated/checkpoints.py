"""`Checkpoints`: what a federated run needs to go on after a stop, on the disk. Decides nothing about rounds.

A checkpoint is two files: tensors (safetensors) and all else (JSON, with the digests of both). The JSON is
written last, so a checkpoint is there wholly or not at all. Nothing in them is run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import Any, Final

import msgspec
import safetensors
import safetensors.torch
import torch

from planc.errors import InputError
from planc.ir import type_of
from runtime.durable.files import TEMPORARY, Files, translated, write_new
from runtime.errors import StorageError, StoreDamaged
from runtime.federated.events import Setting

_FORMAT: Final = "planc-checkpoint"
_VERSION = 1
_NAME = re.compile(r"round-([0-9]{8,12})\.json")
_PARTS = ("model", "server", "clients", "more")

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class RunIdentity:
    """What a run is: with another plan, seed or setting it would come to other parameters.

    Attributes:
        plan_id: of the clients' plan.
        seed: what all draws are derived from.
        config: the settings that change the result, by name.
    """

    plan_id: str
    seed: int
    config: Mapping[str, Setting]


@dataclass(frozen=True)
class Snapshot:
    """A run after a round.

    Attributes:
        round: how many rounds the model has behind it.
        model: parameters and buffers, by path.
        server: the server's own state, by path.
        clients: what clients keep, by client and path: see `Population.kept_states`.
        more: other tensors that the run goes on from.
        notes: all else that it goes on from (a sampler's state, stopping rules, the history): plain JSON.
    """

    round: int
    model: Tensors
    server: Tensors = field(default_factory=dict[str, torch.Tensor])
    clients: Mapping[int, Tensors] = field(default_factory=dict[int, Tensors])
    more: Tensors = field(default_factory=dict[str, torch.Tensor])
    notes: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Restored:
    """A checkpoint that was read back.

    Attributes:
        snapshot: the run as it was.
        path: where it was.
        skipped: newer ones that are damaged: where, and why.
    """

    snapshot: Snapshot
    path: Path
    skipped: tuple[tuple[Path, str], ...]


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON of a checkpoint, but for its own digest."""

    format: str
    version: int
    round: int
    plan: str
    seed: int
    config: dict[str, Setting]
    model: dict[str, str]
    tensors: str
    notes: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, in a folder of its own.

    Args:
        folder: made where it is not there.
        every: how many rounds there are from one to the next.
        keep: how many there are at a time; the oldest go. More than one, so that a damaged one costs some
            rounds only.
        files: the operations of the disk.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        every: int = 1,
        keep: int = 3,
        *,
        files: Files | None = None,
    ) -> None:
        for name, value in (("every", every), ("keep", keep)):
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is a number of at least 1, got {value!r}")
        self.folder = Path(folder)
        self.every = every
        self.keep = keep
        self._files = files or Files()
        self._run: RunIdentity | None = None

    def due(self, number: int) -> bool:
        """Whether there is one after this round."""
        return number % self.every == 0

    def begin(self, run: RunIdentity, model: Tensors, resume: bool = False) -> Restored | None:
        """Begin to save a run, or go on with one.

        Args:
            run: what the run is.
            model: what it starts from; only the types count.
            resume: take the newest checkpoint that is not damaged.

        Returns:
            What to go on from; None to start from the beginning: not to resume, or nothing was saved yet.

        Raises:
            StoreDamaged: to resume, and all that is there is damaged.
            StorageError: the checkpoints that are there are those of another run, or, not to resume, there
                are some; or the folder cannot be used.
        """
        with translated(f"cannot use the folder of checkpoints {self.folder}"):
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(f"round-*{TEMPORARY}"):  # of a run that was killed as it wrote
                self._files.remove(left)
            numbers = self._numbers()
        if not resume:
            if numbers and self._run != run:
                raise StorageError(
                    f"{self.folder} has checkpoints, the newest of round {numbers[-1]}: resume=True goes on "
                    "from it; to start from the beginning, remove them or name another folder"
                )
            self._run = run
            return None
        restored = self._newest(numbers, run, model)
        self._run = run
        return restored

    def save(self, snapshot: Snapshot) -> Path:
        """Write a checkpoint; then let the oldest go. The path of its JSON.

        Raises:
            DiskFull: there is no room. Those that were there stay.
            StorageError: anything else went wrong with the disk. Those that were there stay.
        """
        if self._run is None:
            raise InputError("call begin before save: a checkpoint says of which run it is")
        tensors, header = self._paths(snapshot.round)
        data = safetensors.torch.save(_flat(snapshot))
        content = _sealed(
            _Header(
                _FORMAT,
                _VERSION,
                snapshot.round,
                self._run.plan_id,
                self._run.seed,
                dict(self._run.config),
                _types(snapshot.model),
                sha256(data).hexdigest(),
                dict(snapshot.notes),
            )
        )
        with translated(f"cannot save the checkpoint of round {snapshot.round} in {self.folder}"):
            # One of the same round is left from before a damaged one: its JSON must not mean new tensors.
            with suppress(FileNotFoundError):
                self._files.remove(header)
            try:
                write_new(self._files, tensors, [memoryview(data)])
                write_new(self._files, header, [memoryview(content)])
                self._files.sync_folder(self.folder)
            except BaseException:
                for path in (header, tensors):
                    with suppress(OSError):
                        path.unlink()
                raise
        self._prune(snapshot.round)
        return header

    def _newest(self, numbers: Sequence[int], run: RunIdentity, model: Tensors) -> Restored | None:
        skipped: list[tuple[Path, str]] = []
        for number in reversed(numbers):
            tensors, path = self._paths(number)
            try:
                with translated(f"cannot read the checkpoint {path}"):
                    header, snapshot = _read(path, tensors, number)
            except StoreDamaged as error:
                skipped.append((path, error.message))
                continue
            self._check_run(header, run, model)
            return Restored(snapshot, path, tuple(skipped))
        if skipped:
            raise StoreDamaged(
                f"every checkpoint in {self.folder} is damaged: "
                + "; ".join(f"{path.name}: {why}" for path, why in skipped)
            )
        return None

    def _check_run(self, header: _Header, run: RunIdentity, model: Tensors) -> None:
        """That a checkpoint is of this run.

        Raises:
            StorageError: it is not; says what differs.
        """
        types = _types(model)
        differences = [
            f"{what} was {was}, is {now}"
            for what, was, now in [
                ("the plan", header.plan[:12], run.plan_id[:12]),
                ("the seed", header.seed, run.seed),
                *_both(header.config, dict(run.config), ""),
                *_both(header.model, types, "the model's "),
            ]
            if was != now
        ]
        if differences:
            raise StorageError(
                f"the checkpoints in {self.folder} are of another run: {'; '.join(differences)}. Name "
                "another folder, or go on with what they were made with"
            )

    def _prune(self, newest: int) -> None:
        """Remove what is too old, and what is newer: it was damaged, or this run would not be here."""
        numbers = self._numbers()
        old = [number for number in numbers if number <= newest][: -self.keep]
        for number in (*old, *(number for number in numbers if number > newest)):
            tensors, header = self._paths(number)
            for path in (header, tensors):
                with suppress(OSError):  # it takes room, no more
                    self._files.remove(path)

    def _numbers(self) -> list[int]:
        """The rounds of which there are checkpoints, ascending."""
        names = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def _paths(self, number: int) -> tuple[Path, Path]:
        stem = f"round-{number:08d}"
        return self.folder / f"{stem}.safetensors", self.folder / f"{stem}.json"


def _flat(snapshot: Snapshot) -> dict[str, torch.Tensor]:
    """All tensors under names that say whose they are."""
    clients = {f"{c}/{path}": t for c, state in snapshot.clients.items() for path, t in state.items()}
    groups = (snapshot.model, snapshot.server, clients, snapshot.more)
    return {
        f"{part}/{path}": tensor.detach().cpu().contiguous().clone()  # none may share memory with another
        for part, group in zip(_PARTS, groups, strict=True)
        for path, tensor in group.items()
    }


def _snapshot(header: _Header, tensors: Tensors) -> Snapshot:
    """The run of a checkpoint. KeyError or ValueError where a tensor has a name that none is given."""
    groups: dict[str, dict[str, torch.Tensor]] = {part: {} for part in _PARTS}
    for name, tensor in tensors.items():
        part, _, path = name.partition("/")
        groups[part][path] = tensor
    clients: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in groups["clients"].items():
        client, _, path = name.partition("/")
        clients.setdefault(int(client), {})[path] = tensor
    return Snapshot(header.round, groups["model"], groups["server"], clients, groups["more"], header.notes)


def _sealed(header: _Header) -> bytes:
    # As it will be read: JSON turns numbers that are keys into text, and tuples into lists.
    content = json.loads(json.dumps(msgspec.structs.asdict(header)))
    return json.dumps(content | {"digest": _digest(content)}, indent=1).encode() + b"\n"


def _digest(content: Mapping[str, Any]) -> str:
    # Python's own JSON: it keeps NaN, which losses are at times.
    return sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _read(path: Path, tensors: Path, number: int) -> tuple[_Header, Snapshot]:
    """The checkpoint of a round: its JSON, and the run.

    Raises:
        StoreDamaged: they are not what was written.
        StorageError: they are of a newer version.
    """
    try:
        content = json.loads(path.read_bytes())
        digest = content.pop("digest")
        sound = digest == _digest(content)
    except (ValueError, RecursionError, KeyError, AttributeError, TypeError):
        sound, content = False, {}
    if not sound:
        raise StoreDamaged("its JSON is not what was written")
    if content.get("format") == _FORMAT and content.get("version") != _VERSION:
        raise StorageError(
            f"{path} has version {content.get('version')} of the format; this planc reads version {_VERSION}"
        )
    try:
        header = msgspec.convert(content, _Header)
        data = tensors.read_bytes()
        if sha256(data).hexdigest() != header.tensors:
            raise StoreDamaged("its tensors are not what was written")
        if header.round != number:
            raise StoreDamaged(f"it is that of round {header.round}")
        snapshot = _snapshot(header, safetensors.torch.load(data))
        if _types(snapshot.model) != header.model:
            raise StoreDamaged("its tensors are not those that its JSON names")
    except FileNotFoundError:
        raise StoreDamaged("its tensors are missing") from None
    except (msgspec.ValidationError, safetensors.SafetensorError, KeyError, ValueError) as error:
        # The digests are right, so somebody made it so: dtypes that torch has not, names that are not ours.
        raise StoreDamaged(f"it is no checkpoint: {error}") from None
    return header, snapshot


def _types(tensors: Tensors) -> dict[str, str]:
    return {path: str(type_of(tensor)) for path, tensor in tensors.items()}


def _both(was: Mapping[str, Any], now: Mapping[str, Any], prefix: str) -> list[tuple[str, Any, Any]]:
    """Each name of either, with both values."""
    names = dict.fromkeys([*was, *now])
    return [(f"{prefix}{name}", was.get(name, "not there"), now.get(name, "not there")) for name in names]


__all__ = ["Checkpoints", "Restored", "RunIdentity", "Snapshot"]
