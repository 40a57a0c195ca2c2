"""Writes an audit log: one line an entry, after the last one, on disk before whoever asked gets a reply.

It decides nothing about what is logged: see `runtime.audit.entries`.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runtime.audit.chain import (
    GENESIS,
    Head,
    decode_line,
    encode_head,
    encode_line,
    hash_line,
    head_path,
    read_head,
    segments,
)
from runtime.errors import AuditFailed

_log = logging.getLogger(__name__)
_MAX_BYTES = 64 * 2**20
_TAIL = 4 * 2**20
"""Bytes at the end of a segment in which its last entry is looked for first; entries are far smaller."""


class AuditLog:
    """One audit log, open for writing. Safe to use from many threads; one process at a time.

    Args:
        path: the file; made where it is not there. Segments and head lie beside it.
        max_bytes: the size from which on a new segment is begun; none is ever removed here.
        fsync: whether entries of what leaves are on the disk itself, not only with the kernel, before the
        reply.

    Raises:
        AuditFailed: it cannot be opened, or another process has it.
    """

    def __init__(self, path: Path, *, max_bytes: int = _MAX_BYTES, fsync: bool = True) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._fsync = fsync
        self._lock = threading.Lock()
        self._file = self._head_file = -1
        self._size = 0
        self._head = Head(0, GENESIS)
        try:
            self._open()
        except OSError as error:
            self.close()
            raise AuditFailed(f"{path}: the audit log cannot be opened: {error.strerror or error}") from error
        except BaseException:
            self.close()
            raise

    @property
    def head(self) -> tuple[int, str]:
        """The number and hash of the last line: kept elsewhere, they show whether the end was cut off."""
        return self._head.n, self._head.hash

    def append(self, entry: Mapping[str, Any], *, leaves: bool = False) -> None:
        """Write an entry; ``n``, ``prev`` and ``time`` are added.

        Args:
            entry: numbers, texts, lists and mappings of them.
            leaves: whether something leaves the worker with it.

        Raises:
            AuditFailed: it is not written, and the log is as it was.
        """
        with self._lock:
            if self._file < 0:
                raise AuditFailed("the audit log is closed")
            try:
                self._append(entry, sync=leaves and self._fsync)
            except OSError as error:
                self._cut_back()
                raise AuditFailed(
                    f"the audit log cannot be written ({error.strerror or error}): the request is "
                    "refused, and so are others until it can; ask the worker's owner"
                ) from error

    def close(self) -> None:
        """Give up the files."""
        with self._lock:
            for descriptor in (self._file, self._head_file):
                if descriptor >= 0:
                    os.close(descriptor)
            self._file = self._head_file = -1

    def _append(self, entry: Mapping[str, Any], *, sync: bool) -> None:
        if os.fstat(self._file).st_size != self._size:
            self._cut_back()
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        line = encode_line({**entry, "n": self._head.n + 1, "prev": self._head.hash, "time": now})
        if self._size and self._size + len(line) >= self._max_bytes:
            self._rotate()
        data = line + b"\n"
        _write(self._file, data)
        if sync:
            os.fdatasync(self._file)
        head = Head(self._head.n + 1, hash_line(line))
        # Last: a head that is behind is a crash, one that is ahead is a line that is missing.
        os.pwrite(self._head_file, encode_head(head), 0)
        self._size += len(data)
        self._head = head

    def _cut_back(self) -> None:
        """Remove what a failed write left; where that fails too, the next append tries again."""
        try:
            os.ftruncate(self._file, self._size)
            os.pwrite(self._head_file, encode_head(self._head), 0)
        except OSError as error:
            _log.error("audit log %s: what a failed write left cannot be removed: %s", self.path, error)

    def _rotate(self) -> None:
        os.fsync(self._file)
        known = segments(self.path)[:-1]
        number = int(known[-1].suffix[1:]) + 1 if known else 1
        os.rename(self.path, self.path.with_name(f"{self.path.name}.{number:06d}"))
        os.close(self._file)
        self._file = _open(self.path, os.O_APPEND)
        self._size = 0
        self._sync_folder()

    def _sync_folder(self) -> None:
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _open(self) -> None:
        self._head_file = _open(head_path(self.path))
        try:
            fcntl.flock(self._head_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AuditFailed(f"{self.path}: another process writes this audit log") from None
        kept = read_head(self.path)
        files = segments(self.path)
        self._file = _open(self.path, os.O_APPEND)
        self._size = os.fstat(self._file).st_size
        self._sync_folder()
        torn: list[bytes] = []
        # The last file that has an entry: after a crash while rotating the newest has none yet.
        for path in reversed(files):
            last, after = _tail(path)
            torn = after + torn
            if last is not None:
                entry = decode_line(last)
                assert entry is not None
                self._head = Head(entry["n"], hash_line(last))
                break
        if self._size and os.pread(self._file, 1, self._size - 1) != b"\n":
            _write(self._file, b"\n")
            self._size += 1
        self._mark(torn, kept)

    def _mark(self, torn: Sequence[bytes], kept: Head | None) -> None:
        """Say in the log itself what is not as it should be, and go on after that."""
        last = self._head
        if kept is None and not last.n and not torn:  # a new log
            os.pwrite(self._head_file, encode_head(last), 0)
            return
        if torn:
            data = b"\n".join(torn)
            _log.warning("audit log %s: its last line is torn", self.path)
            self._append({"kind": "torn", "bytes": len(data), "torn": hash_line(data)}, sync=self._fsync)
        if kept is None or kept.n > last.n or (kept.n == last.n and kept.hash != last.hash):
            known = kept.n if kept else None
            _log.error("audit log %s does not end as it was left, at line %s", self.path, known)
            self._append({"kind": "damaged", "head_n": known}, sync=self._fsync)


def _open(path: Path, flags: int = 0) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | flags, 0o600)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _tail(path: Path) -> tuple[bytes | None, list[bytes]]:
    """The last entry of a file, and the lines after it, which are none."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        for reach in (_TAIL, size):
            file.seek(max(size - reach, 0))
            lines = file.read().split(b"\n")
            if not lines[-1]:
                lines.pop()
            for back, line in enumerate(reversed(lines)):
                if decode_line(line) is not None:
                    return line, lines[len(lines) - back :]
    return None, lines


__all__ = ["AuditLog"]
