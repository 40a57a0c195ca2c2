"""What a durable store asks of the operating system, one method an operation, and what its errors mean.

Tests put an object of their own in its place, to see what becomes of a store when an operation fails. Knows
no objects and no tables.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import sqlite3
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from runtime.errors import DiskFull, StorageError, StoreLocked

TEMPORARY = ".tmp"
_CHUNK = 16 * 2**20
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Files:
    """The operations that change something."""

    def create(self, path: Path) -> int:
        """A descriptor of a new, empty file that only this user may read."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write some of the bytes; returns how many."""
        return os.write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        """Wait until a file's bytes are on the disk."""
        os.fsync(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file its name."""
        os.rename(old, new)

    def sync_folder(self, folder: Path) -> None:
        """Wait until the names of a folder are on the disk."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remove(self, path: Path) -> None:
        """Delete a file."""
        os.unlink(path)

    def execute(
        self, connection: sqlite3.Connection, statement: str, values: Sequence[Any] = ()
    ) -> sqlite3.Cursor:
        """Run one statement of the index."""
        return connection.execute(statement, values)


def write_new(files: Files, path: Path, parts: Iterable[memoryview]) -> bytes:
    """Write a file under another name, and give it its own when its bytes are on the disk.

    The name itself is there for good only after `Files.sync_folder`.

    Returns:
        The SHA-256 of the bytes.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    digest = hashlib.sha256()
    descriptor = files.create(temporary)
    try:
        try:
            for part in parts:
                digest.update(part)
                while part.nbytes:
                    part = part[files.write(descriptor, part[:_CHUNK]) :]
            files.sync(descriptor)
        finally:
            os.close(descriptor)
        files.rename(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    return digest.digest()


def lock(path: Path) -> int:
    """Hold a lock file until its descriptor is closed or the process ends, however it ends.

    Raises:
        StoreLocked: another holds it; names the process.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        raise StoreLocked(
            f"the store {path.parent} is open in process {holder}: only one worker may use it at a time"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
    return descriptor


@contextmanager
def translated(what: str) -> Generator[None]:
    """Errors of the disk as those of `runtime.errors`.

    Raises:
        DiskFull: there is no room.
        StorageError: anything else went wrong with the disk.
    """
    try:
        yield
    except OSError as error:
        cls = DiskFull if error.errno in _FULL else StorageError
        raise cls(f"{what}: {os.strerror(error.errno or 0)}") from error
    except sqlite3.Error as error:
        full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        raise (DiskFull if full else StorageError)(f"{what}: {error}") from error
