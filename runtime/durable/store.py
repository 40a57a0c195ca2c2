"""A worker's state on the disk: what it acknowledged is there after any crash, what it did not is absent.

`DurableStore.commit` writes down all that one request changed, in one transaction, before its reply is sent;
when that fails, all of it is taken back. Knows no rights and no handlers.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec
import torch

from runtime.durable.blobs import FILE_NAME, INLINE, Blob, lay_out, parts
from runtime.durable.catalogue import Catalogue, Draft
from runtime.durable.contents import Contents, Damage, Session, contents
from runtime.durable.files import Files, lock, translated, write_new
from runtime.durable.index import Change, Index
from runtime.durable.records import Records
from runtime.durable.rows import PlanRow, object_row
from runtime.errors import StorageError, StoreDamaged
from runtime.messages import Request
from runtime.replay import Answered, Replays
from runtime.shelf import Shelf
from runtime.store import Store
from runtime.wire import Pieces, encode_frame

_log = logging.getLogger("runtime.worker")
_SHOWN = 8
"""Damaged things that an error names."""


class DurableStore:
    """A folder that keeps the objects, plans, records and replies of one worker.

    Give it to `runtime.worker.Worker`, which attaches and closes it. Not thread-safe: the worker locks.

    Args:
        folder: made where there is none; held by one process at a time.
        files: the operations that change it.

    Attributes:
        folder: as given.
        records: small facts beside objects and plans; durable with the next commit.

    Raises:
        StoreLocked: another process has it open.
        StorageError: the folder cannot be made or opened.
    """

    def __init__(self, folder: str | Path, *, files: Files | None = None) -> None:
        self.folder = Path(folder)
        self.records = Records()
        self._files = files or Files()
        self._tensors = self.folder / "tensors"
        with translated(f"the store {self.folder} cannot be opened"):
            self._make_folders()
            self._lock: int | None = lock(self.folder / "lock")
        self._index: Index | None = None
        self._catalogue = Catalogue()
        self._offered: set[int] = set()
        self._replies: dict[Session, dict[int, Blob | None]] = {}
        self._broken = ""

    def _make_folders(self) -> None:
        missing = [path for path in (self._tensors, *self._tensors.parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir(mode=0o700, exist_ok=True)
            self._files.sync_folder(path.parent)

    def attach(self, worker: str, device: torch.device, store: Store, shelf: Shelf, replays: Replays) -> None:
        """Fill an empty worker with what was kept, and note what changes in it from then on.

        Raises:
            StoreDamaged: something is not what was written; nothing was changed.
            StorageError: the store cannot be read, is of a newer version, or another worker's.
        """
        try:
            found = self._read(worker, device, shelf)
            if found.damages:
                raise self._damaged(found.damages)
            store.restore(found.objects)
            for id, installed in found.plans.items():
                shelf.restore(id, installed)
            for (client, session), known in found.sessions.items():
                replays.restore(client, session, known)
            for (kind, key), value in found.records.items():
                self.records.restore(kind, key, value)
            self._replies = found.replies
            self._clean(found, self._catalogue.restore(found.blobs, found.pieces, found.users))
        except BaseException:
            self.close()
            raise
        self._store, self._shelf, self._replays = store, shelf, replays
        store.record()
        shelf.record()

    def damages(self, worker: str, shelf: Shelf) -> list[Damage]:
        """What is not as it was written. For a store that is attached to no worker."""
        return self._read(worker, torch.device("cpu"), shelf).damages

    def drop(self, damages: Iterable[Damage]) -> None:
        """Forget what is damaged. For a store whose `damages` were asked for."""
        change = Change()
        for damage in damages:
            damage.drop(change)
        with translated(f"the store {self.folder} cannot be changed"):
            self._opened().write(change)

    def offer(self, id: int, tensor: torch.Tensor) -> None:
        """This object is the worker's owner's, who brings it at every start: it is not kept here."""
        self._offered.add(id)
        self._catalogue.pass_over(tensor)

    def commit(self, request: Request | None = None) -> None:
        """Write down what changed since the last commit, and the reply to a request if anything did.

        Args:
            request: the one that changed it, whose reply is in `Replays` already.

        Raises:
            DiskFull: there is no room; everything that changed was taken back, and what is older is there.
            StorageError: it could not be written, with the same effect; or whether it was is not known, and
                then this and every later change is refused until the worker is started again.
        """
        try:
            objects = [id for id in self._store.changed if id not in self._offered]
            plans, records = self._shelf.changed, self.records.changes()
            if objects or plans or records:
                self._check_usable()
                with translated("the durable store cannot be written; nothing was changed"):
                    self._write(objects, plans, records, request)
        except BaseException:
            self.undo()
            raise
        self._store.settle()
        self._shelf.settle()
        self.records.settle()

    def undo(self) -> None:
        """Take back what changed since the last commit."""
        self._store.undo()
        self._shelf.undo()
        self.records.undo()

    def close(self) -> None:
        """Let go of the folder. Later changes are refused."""
        self._broken = "it is closed"
        if self._index is not None:
            self._index.close()
            self._index = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _read(self, worker: str, device: torch.device, shelf: Shelf) -> Contents:
        with translated(f"the store {self.folder} cannot be opened"):
            self._index = Index(self.folder / "index.sqlite", worker, self._files)
            self._files.sync_folder(self.folder)
            return contents(self._index, self._tensors, device, shelf.check)

    def _damaged(self, damages: list[Damage]) -> StoreDamaged:
        shown = "; ".join(f"{damage.what}: {damage.why}" for damage in damages[:_SHOWN])
        more = f"; and {len(damages) - _SHOWN} more" if len(damages) > _SHOWN else ""
        return StoreDamaged(
            f"the store {self.folder} is damaged: {shown}{more}. Restore the folder from a copy, start the "
            f"worker with --store at another folder, or give up what is damaged: "
            f"python -m runtime.durable {self.folder} --drop"
        )

    def _check_usable(self) -> None:
        if self._broken:
            raise StorageError(f"the durable store takes no changes: {self._broken}")

    def _opened(self) -> Index:
        self._check_usable()
        assert self._index is not None
        return self._index

    def _write(
        self,
        objects: Iterable[int],
        plans: Iterable[str],
        records: dict[tuple[str, str], bytes | None],
        request: Request | None,
    ) -> None:
        index = self._opened()
        change, draft = Change(), self._catalogue.draft()
        written: list[Blob] = []
        replies: dict[int, Blob | None] | None = None
        forgotten = list(self._replays.forgotten)
        before = index.sequence
        try:
            self._draw_up(change, draft, objects, plans, records)
            self._write_tensors(change, draft, written)
            for client, session in forgotten:
                change.delete("sessions", client, session)
                change.delete("replies", client, session)
                draft.gone.extend(blob for blob in self._replies.get((client, session), {}).values() if blob)
            if request is not None:
                replies = self._write_reply(change, draft, request, written, index.sequence + 1)
            for blob in draft.gone:
                change.delete("blobs", blob.id)
            if any(blob.data is None for blob in written):
                self._files.sync_folder(self._tensors)
            index.write(change)
            draft.settle()
            self._replays.settle_forgotten(len(forgotten))
            for key in forgotten:
                self._replies.pop(key, None)
            if request is not None and replies is not None:
                self._replies[request.client, request.session] = replies
        except StorageError as error:
            self._broken = f"{error.message}; start the worker again"
            raise
        except BaseException:
            if index.sequence != before:  # interrupted after it was written: what is in memory is behind
                self._broken = "it was interrupted; start the worker again"
                raise
            for blob in written:
                if blob.data is None:
                    with suppress(OSError):
                        os.unlink(self._tensors / blob.name)
            raise
        self._remove(blob.name for blob in draft.gone if blob.data is None)

    def _draw_up(
        self,
        change: Change,
        draft: Draft,
        objects: Iterable[int],
        plans: Iterable[str],
        records: dict[tuple[str, str], bytes | None],
    ) -> None:
        """The rows of what changed, but for blobs and replies."""
        for id in objects:
            user = ("object", id)
            draft.use(user)
            stored = self._store.get(id)
            if stored is None:
                change.delete("objects", id)
            else:
                row = object_row(stored, lambda tensor, user=user: draft.refer(user, tensor))
                change.put("objects", id, msgspec.json.encode(row))
        for id in plans:
            user = ("plan", id)
            draft.use(user)
            plan = self._shelf.find(id)
            if plan is None:
                change.delete("plans", id)
                continue
            constants = {name: draft.refer(user, c) for name, c in plan.program.constants.items()}
            row = PlanRow(constants, tuple(sorted(plan.clients)), tuple(plan.tags), plan.description)
            change.put("plans", id, msgspec.json.encode(row), plan.data)
        for (kind, key), value in records.items():
            if value is None:
                change.delete("records", kind, key)
            else:
                change.put("records", kind, key, value)

    def _write_tensors(self, change: Change, draft: Draft, written: list[Blob]) -> None:
        for id, memories in draft.groups():
            header, pieces = lay_out(memories)
            nbytes = len(header) + sum(memory.nbytes for _, memory in memories)
            name = f"{id}.safetensors"
            data = None
            if nbytes <= INLINE:
                data = b"".join(parts(header, memories))
                digest = hashlib.sha256(data).digest()
            else:
                digest = write_new(self._files, self._tensors / name, parts(header, memories))
            blob = Blob(id, "safetensors", nbytes, digest, pieces, data)
            written.append(blob)
            draft.wrote(blob)
            change.put_blob(blob)

    def _write_reply(
        self, change: Change, draft: Draft, request: Request, written: list[Blob], used: int
    ) -> dict[int, Blob | None]:
        """Rows of the request's session: what is known of it now. Returns the replies that are kept then."""
        client, session = request.client, request.session
        known = self._replays.remembered(client, session)
        change.put("sessions", client, session, known.highest, known.settled, used)
        kept: dict[int, Blob | None] = {}
        for number, blob in self._replies.get((client, session), {}).items():
            reply = known.replies.get(number)
            if number not in known.replies:
                change.delete("replies", client, session, number)
            elif reply is None and blob is not None:
                change.put("replies", client, session, number, None)
            kept.update({number: blob if reply else None} if number in known.replies else {})
            if blob is not None and reply is None:
                draft.gone.append(blob)
        answered = known.replies.get(request.request_id)
        if answered is not None:
            blob = self._write_frame(answered)
            written.append(blob)
            change.put_blob(blob)
            change.put("replies", client, session, request.request_id, blob.id)
            kept[request.request_id] = blob
        return kept

    def _write_frame(self, answered: Answered) -> Blob:
        frame = encode_frame(*answered)
        pieces = frame.parts if isinstance(frame, Pieces) else [memoryview(frame)]
        id, nbytes = self._catalogue.new_blob(), len(frame)
        if nbytes <= INLINE:
            data = b"".join(pieces)
            return Blob(id, "frame", nbytes, hashlib.sha256(data).digest(), data=data)
        digest = write_new(self._files, self._tensors / f"{id}.frame", pieces)
        return Blob(id, "frame", nbytes, digest)

    def _clean(self, found: Contents, unused: Iterable[Blob]) -> None:
        """Remove what nothing means: files of what was not committed, and blobs of what was dropped."""
        meant = {blob.id for known in self._replies.values() for blob in known.values() if blob}
        gone = {blob.id for blob in unused}
        gone |= {blob.id for blob in found.blobs if blob.kind == "frame" and blob.id not in meant}
        if gone:
            change = Change()
            for id in sorted(gone):
                change.delete("blobs", id)
            with translated(f"the store {self.folder} cannot be changed"):
                self._opened().write(change)
        names = {blob.name for blob in found.blobs if blob.id not in gone and blob.data is None}
        with translated(f"the store {self.folder} cannot be read"):
            there = [name for name in os.listdir(self._tensors) if FILE_NAME.fullmatch(name)]
        self._remove(name for name in there if name not in names)

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            try:
                self._files.remove(self._tensors / name)
            except OSError as error:  # it goes at the next start
                _log.warning("file %s is no longer needed and cannot be removed: %s", name, error.strerror)
