"""Reading a durable store back: all is checked, and what is not as it was written is found, not passed over.

Reads only; what becomes of damage is decided by `runtime.durable.store` (refused) and the command line
(dropped).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import torch

from planc.errors import PlancError
from runtime.durable.blobs import Blob, read, read_all
from runtime.durable.catalogue import User
from runtime.durable.index import Change, Index, Row
from runtime.durable.rows import ObjectRow, PlanRow, TensorRow, object_of, tensor_of
from runtime.messages import Reply
from runtime.replay import Answered, Remembered
from runtime.shelf import Installed
from runtime.store import Stored
from runtime.wire import WireLimits, decode

Session = tuple[str, int]
_ANY_SIZE = WireLimits(2**62, 2**31, 2**31, 2**10)
_objects = msgspec.json.Decoder(ObjectRow)
_plans = msgspec.json.Decoder(PlanRow)
Check = Callable[[str, bytes, Mapping[str, torch.Tensor], str], Installed]
"""`runtime.shelf.Shelf.check`."""


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that is not what was written: what, why, and the row of the index that means it."""

    what: str
    why: str
    table: str
    key: Row

    def drop(self, change: Change) -> None:
        """Let a change forget it."""
        if self.table == "replies":  # that the request was applied stays known
            change.put("replies", *self.key, None)
            return
        change.delete(self.table, *self.key)
        if self.table == "sessions":
            change.delete("replies", *self.key)


@dataclass(slots=True)
class Contents:
    """What a durable store holds. ``used`` are the blobs that something means, by id."""

    objects: dict[int, Stored] = field(default_factory=dict[int, Stored])
    plans: dict[str, Installed] = field(default_factory=dict[str, Installed])
    sessions: dict[Session, Remembered] = field(default_factory=dict[Session, Remembered])
    replies: dict[Session, dict[int, Blob | None]] = field(
        default_factory=dict[Session, "dict[int, Blob | None]"]
    )
    records: dict[tuple[str, str], bytes] = field(default_factory=dict[tuple[str, str], bytes])
    blobs: list[Blob] = field(default_factory=list[Blob])
    pieces: dict[int, torch.UntypedStorage] = field(default_factory=dict[int, torch.UntypedStorage])
    users: dict[User, list[TensorRow]] = field(default_factory=dict[User, "list[TensorRow]"])
    damages: list[Damage] = field(default_factory=list[Damage])


def contents(index: Index, folder: Path, device: torch.device, check: Check) -> Contents:
    """All of a store; tensors on a device, plans verified again."""
    return _Reading(index, folder, device, check).all()


class _Reading:
    def __init__(self, index: Index, folder: Path, device: torch.device, check: Check) -> None:
        self._index = index
        self._folder = folder
        self._device = device
        self._check = check
        self._out = Contents()
        self._broken: dict[int, str] = {}
        """Why a piece cannot be had, by piece."""

    def all(self) -> Contents:
        objects = self._object_rows()
        plans = self._plan_rows()
        self._read_pieces({row.piece for rows in self._out.users.values() for row in rows})
        for id, row in objects.items():
            self._object(id, row)
        for id, (row, data) in plans.items():
            self._plan(id, row, data)
        self._sessions()
        for (kind, key, value), right in self._index.rows("records"):
            if right:
                self._out.records[kind, key] = value
            else:
                self._damage(f"record {kind} {key!r}", _ROW, "records", kind, key)
        return self._out

    def _object_rows(self) -> dict[int, ObjectRow]:
        out: dict[int, ObjectRow] = {}
        for (id, data), right in self._index.rows("objects"):
            if not right:
                self._damage(f"object {id}", _ROW, "objects", id)
                continue
            row = out[id] = _objects.decode(data)
            if isinstance(row.value, TensorRow):
                self._out.users["object", id] = [row.value, *([row.grad] if row.grad else [])]
        return out

    def _plan_rows(self) -> dict[str, tuple[PlanRow, bytes]]:
        out: dict[str, tuple[PlanRow, bytes]] = {}
        for (id, data, plan), right in self._index.rows("plans"):
            if not right:
                self._damage(f"plan {id}", _ROW, "plans", id)
                continue
            row, _ = out[id] = _plans.decode(data), plan
            self._out.users["plan", id] = list(row.constants.values())
        return out

    def _read_pieces(self, wanted: Collection[int]) -> None:
        for blob, right in self._index.blobs():
            if not right:
                continue  # nobody can say which pieces were in it: whoever uses one lacks it
            self._out.blobs.append(blob)
            mine = {piece.id for piece in blob.pieces} & set(wanted)
            if blob.kind == "frame" or not mine:
                continue
            try:
                self._out.pieces.update(read(blob, self._folder, mine, self._device))
            except (OSError, ValueError) as error:
                self._broken.update(dict.fromkeys(mine, _why(error)))

    def _recall(self, row: TensorRow) -> torch.Tensor:
        storage = None
        if row.piece:
            storage = self._out.pieces.get(row.piece)
            if storage is None:
                raise ValueError(self._broken.get(row.piece, "its elements are not in the index"))
        return tensor_of(row, storage, self._device)

    def _object(self, id: int, row: ObjectRow) -> None:
        try:
            self._out.objects[id] = object_of(row, self._recall)
        except (ValueError, RuntimeError) as error:
            self._damage(f"object {id}", str(error), "objects", id)

    def _plan(self, id: str, row: PlanRow, data: bytes) -> None:
        try:
            constants = {name: self._recall(tensor) for name, tensor in row.constants.items()}
            installed = self._check(id, data, constants, row.description)
        except (ValueError, RuntimeError, PlancError) as error:
            self._damage(f"plan {id}", str(error), "plans", id)
            return
        installed.clients.update(row.clients)
        installed.tags.update(dict.fromkeys(row.tags))
        self._out.plans[id] = installed

    def _sessions(self) -> None:
        replies: defaultdict[Session, dict[int, Answered | None]] = defaultdict(dict)
        blobs = {blob.id: blob for blob in self._out.blobs}
        for (client, session, number, blob), right in self._index.rows("replies"):
            what = f"the reply to request {number} of {client!r} (session {session})"
            try:
                if not right or (blob is not None and blob not in blobs):
                    raise ValueError(_ROW)
                reply = None if blob is None else _reply(blobs[blob], self._folder)
            except (OSError, ValueError, PlancError) as error:
                self._damage(what, _why(error), "replies", client, session, number)
                continue
            replies[client, session][number] = reply
            known = self._out.replies.setdefault((client, session), {})
            known[number] = None if blob is None else blobs[blob]
        rows = sorted(self._index.rows("sessions"), key=lambda found: found[0][4])
        for (client, session, highest, settled, _), right in rows:
            if not right:
                self._damage(f"session {session} of {client!r}", _ROW, "sessions", client, session)
                continue
            self._out.sessions[client, session] = Remembered(highest, settled, replies[client, session])

    def _damage(self, what: str, why: str, table: str, *key: object) -> None:
        self._out.damages.append(Damage(what, why, table, key))
        self._out.users.pop(("object" if table == "objects" else "plan", key[0]), None)  # type: ignore[arg-type] # an id


_ROW = "its row in the index is not what was written"


def _why(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"file {Path(error.filename).name}: it is missing"
    return f"{error.strerror or 'cannot be read'}" if isinstance(error, OSError) else str(error)


def _reply(blob: Blob, folder: Path) -> Answered:
    message, tensors = decode(bytearray(read_all(blob, folder)), _ANY_SIZE)
    if not isinstance(message, Reply):
        raise ValueError("it is not a reply")
    return message, tensors
