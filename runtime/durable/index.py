"""The index of a durable store: an SQLite file with a row for all that was acknowledged. Knows no tensors.

One `Index.write` is one transaction. Each row has a checksum of its own, since SQLite's pages have none.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from runtime.durable.blobs import Blob, Piece
from runtime.durable.files import Files
from runtime.errors import StorageError, StoreDamaged

VERSION = 1
_APPLICATION = 0x706C6E63
_SCHEMA = (
    "CREATE TABLE facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID",
    "CREATE TABLE objects (id INTEGER PRIMARY KEY, row BLOB, crc INTEGER)",
    "CREATE TABLE plans (id TEXT PRIMARY KEY, row BLOB, plan BLOB, crc INTEGER) WITHOUT ROWID",
    "CREATE TABLE blobs (id INTEGER PRIMARY KEY, kind TEXT, nbytes INTEGER, digest BLOB, pieces BLOB, "
    "data BLOB, crc INTEGER)",
    "CREATE TABLE sessions (client TEXT, session INTEGER, highest INTEGER, settled INTEGER, used INTEGER, "
    "crc INTEGER, PRIMARY KEY (client, session)) WITHOUT ROWID",
    "CREATE TABLE replies (client TEXT, session INTEGER, number INTEGER, blob INTEGER, crc INTEGER, "
    "PRIMARY KEY (client, session, number)) WITHOUT ROWID",
    "CREATE TABLE records (kind TEXT, key TEXT, value BLOB, crc INTEGER, "
    "PRIMARY KEY (kind, key)) WITHOUT ROWID",
)
_COLUMNS = {
    "objects": ("id", "row"),
    "plans": ("id", "row", "plan"),
    "blobs": ("id", "kind", "nbytes", "digest", "pieces", "data"),
    "sessions": ("client", "session", "highest", "settled", "used"),
    "replies": ("client", "session", "number", "blob"),
    "records": ("kind", "key", "value"),
}
_UNCHECKED = {"data"}  # it has a digest
_KEYS = {"plans": 1, "objects": 1, "blobs": 1, "sessions": 2, "replies": 3, "records": 2}
_pieces = msgspec.json.Decoder(tuple[tuple[int, int, int], ...])
Row = tuple[Any, ...]


@dataclass(slots=True)
class Change:
    """What one transaction does: by table, the rows to put, and the keys of those to delete first."""

    puts: dict[str, list[Row]] = field(default_factory=dict[str, list[Row]])
    deletes: dict[str, list[Row]] = field(default_factory=dict[str, list[Row]])

    def put(self, table: str, *row: Any) -> None:
        """Put a row, in place of that of its key."""
        self.puts.setdefault(table, []).append(row)

    def put_blob(self, blob: Blob) -> None:
        """Put a blob that is written, or whose bytes go with the row."""
        pieces = msgspec.json.encode([(piece.id, piece.offset, piece.nbytes) for piece in blob.pieces])
        self.put("blobs", blob.id, blob.kind, blob.nbytes, blob.digest, pieces, blob.data)

    def delete(self, table: str, *key: Any) -> None:
        """Delete the row of a key, or of the keys that begin so."""
        self.deletes.setdefault(table, []).append(key)


class Index:
    """An open index.

    Args:
        path: its file; made where there is none.
        worker: whose it is.
        files: the operations that change it.

    Raises:
        StoreDamaged: the file is not an index, or is broken.
        StorageError: it is of a newer version, or another worker's.
    """

    def __init__(self, path: Path, worker: str, files: Files) -> None:
        self._path = path
        self._files = files
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            self._open(worker)
        except sqlite3.DatabaseError as error:
            self._connection.close()
            if isinstance(error, sqlite3.OperationalError):
                raise
            raise self._damaged(str(error)) from error
        except BaseException:
            self._connection.close()
            raise
        self.sequence = self._read_sequence()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def write(self, change: Change) -> None:
        """Apply a change wholly, or not at all and raise what went wrong.

        Raises:
            sqlite3.Error: nothing of it was done.
            StorageError: whether it was done is not known.
        """
        number = self.sequence + 1
        try:
            self._run("BEGIN IMMEDIATE")
            for table, keys in change.deletes.items():
                for key in keys:
                    names = " AND ".join(f"{name}=?" for name in _COLUMNS[table][: len(key)])
                    self._run(f"DELETE FROM {table} WHERE {names}", key)
            for table, rows in change.puts.items():
                places = ",".join("?" * (len(_COLUMNS[table]) + 1))
                for row in rows:
                    self._run(f"INSERT OR REPLACE INTO {table} VALUES ({places})", (*row, _crc(table, row)))
            self._run("UPDATE facts SET value=? WHERE name='sequence'", (number,))
            self._run("COMMIT")
            self.sequence = number
        except BaseException as error:
            # An error of COMMIT itself does not say what the file says now: that has the last word.
            if not self._came_through(number, error):
                raise
            self.sequence = number

    def rows(self, table: str) -> Iterator[tuple[Row, bool]]:
        """All rows of a table without their checksums, and whether those are right; ordered by key."""
        order = ",".join(_COLUMNS[table][: _KEYS[table]])
        for *row, crc in self._connection.execute(f"SELECT * FROM {table} ORDER BY {order}"):
            yield tuple(row), crc == _crc(table, row)

    def blobs(self) -> Iterator[tuple[Blob, bool]]:
        """All blobs, and whether their rows are what was written."""
        for (id, kind, nbytes, digest, pieces, data), right in self.rows("blobs"):
            layout = tuple(Piece(*piece) for piece in _pieces.decode(pieces)) if right else ()
            yield Blob(id, kind, nbytes, digest, layout, data), right

    def _run(self, statement: str, values: Sequence[Any] = ()) -> None:
        self._files.execute(self._connection, statement, values)

    def _came_through(self, number: int, error: BaseException) -> bool:
        """Whether a transaction that ended in an error is in the file all the same."""
        with suppress(sqlite3.Error):
            self._connection.rollback()
        try:
            return self._read_sequence() == number
        except (sqlite3.Error, StoreDamaged):
            raise StorageError(f"whether a change was written is not known: {error}") from error

    def _read_sequence(self) -> int:
        row = self._connection.execute("SELECT value FROM facts WHERE name='sequence'").fetchone()
        if row is None or not isinstance(row[0], int):
            raise self._damaged("it does not say how far it is")
        return row[0]

    def _open(self, worker: str) -> None:
        connection = self._connection
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        empty = not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if not empty and application != _APPLICATION:
            raise self._damaged("it is an SQLite file of something else")
        if version > VERSION:
            raise StorageError(
                f"the store {self._path.parent} has version {version}, this planc reads up to {VERSION}: "
                "start the worker with a newer planc, or with --store at another folder"
            )
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        if empty:
            self._create(worker)
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise self._damaged(found)
        owner: Mapping[str, Any] = dict(connection.execute("SELECT name, value FROM facts").fetchall())
        if owner.get("worker") != worker:
            raise StorageError(
                f"the store {self._path.parent} belongs to worker {owner.get('worker')!r}, not {worker!r}: "
                "start that worker, or give --store another folder"
            )

    def _create(self, worker: str) -> None:
        self._run("BEGIN IMMEDIATE")
        for statement in _SCHEMA:
            self._run(statement)
        self._run("INSERT INTO facts VALUES ('worker', ?)", (worker,))
        self._run("INSERT INTO facts VALUES ('sequence', 0)")
        self._run(f"PRAGMA application_id={_APPLICATION}")
        self._run(f"PRAGMA user_version={VERSION}")
        self._run("COMMIT")

    def _damaged(self, why: str) -> StoreDamaged:
        return StoreDamaged(
            f"{self._path} is not an index that can be read: {why}. Restore the folder from a copy, or start "
            "the worker with --store at another folder"
        )


def _crc(table: str, row: Sequence[Any]) -> int:
    checked = [value for name, value in zip(_COLUMNS[table], row, strict=True) if name not in _UNCHECKED]
    return zlib.crc32(msgspec.msgpack.encode((table, checked)))
