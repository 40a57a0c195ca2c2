"""Tokens: what a client shows instead of a certificate. The file of a worker's tokens, and the check of one.

A token is 256 random bits, so one plain hash of it is all that needs to be stored: there is nothing to guess,
and nothing for a slow hash to slow down. Its id is no secret; it finds the entry, so there is no scan whose
duration could tell which entries are there.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import logging
import os
import re
import secrets
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from runtime.errors import CredentialsError
from runtime.identity import NAME, Identity, Role, check_name
from runtime.security import files
from runtime.security.identity import moment

FILE = "tokens.json"

_TOKEN = re.compile(r"planc_([0-9a-f]{16})_[A-Za-z0-9_-]{43}")
_WHAT = "a file of tokens, as `planc certs token` writes it"
_NOBODY = "0" * 64
_LOG = logging.getLogger(__name__)

_Time = Annotated[datetime, msgspec.Meta(tz=True)]


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept of one token. Nothing in it can be shown as a token."""

    name: Annotated[str, msgspec.Meta(pattern=rf"\A{NAME}\Z")]
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    created: _Time
    expires: _Time | None = None

    def __repr__(self) -> str:
        return f"Entry(name={self.name!r}, created={self.created}, expires={self.expires})"


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: Literal[1]
    tokens: dict[Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")], Entry]


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token at the one moment at which its text is known.

    Attributes:
        text: the secret; in no representation of this object.
        expires: the last moment at which it is good, or None.
    """

    id: str
    name: str
    text: str = field(repr=False)
    expires: datetime | None = None


class TokenStore:
    """The tokens that one worker accepts, in a file. Changes of the file are seen at the next check.

    Any number of threads may check; any number of processes may add and revoke.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._read: tuple[tuple[int, int, int], dict[str, Entry]] | None = None

    def __repr__(self) -> str:
        return f"TokenStore({str(self.path)!r})"

    def entries(self) -> Mapping[str, Entry]:
        """What is kept, by the ids of the tokens.

        Raises:
            CredentialsError: the file is missing, open to others, or not of this form.
        """
        try:
            status = self.path.stat()
            # It is only ever replaced, never written to, so a change is a new file.
            stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        except OSError:
            stamp = (0, 0, 0)  # unlike any file's, so it is opened, and that says what is wrong
        with self._lock:
            if self._read is None or self._read[0] != stamp:
                self._read = stamp, self._decode()
            return self._read[1]

    def _decode(self) -> dict[str, Entry]:
        try:
            return msgspec.json.decode(files.read_private(self.path, _WHAT), type=_File).tokens
        except msgspec.MsgspecError as error:
            raise CredentialsError(f"{self.path}: expected {_WHAT}: {error}") from None

    def add(self, name: str, expires: datetime | None = None) -> NewToken:
        """Make a token for a client, and the file where there is none yet.

        Raises:
            CredentialsError: a name that cannot be, an end in the past, or a file that is not of this form.
            OSError: the file cannot be written.
        """
        now = datetime.now(UTC)
        check_name(name)
        if expires is not None and expires <= now:
            raise CredentialsError(f"a token that ends at {moment(expires)} could never be used")
        token_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
        text = f"planc_{token_id}_{secret}"
        with self._changing() as tokens:
            tokens[token_id] = Entry(name, _hash(text), now, expires)
        return NewToken(token_id, name, text, expires)

    def revoke(self, name: str, token_id: str | None = None) -> int:
        """Take back a client's tokens, all or one; how many they were.

        Raises:
            CredentialsError: there is no such token.
            OSError: the file cannot be written.
        """
        self.entries()  # no file is made to take something out of it
        with self._changing() as tokens:
            found = [i for i, e in tokens.items() if e.name == name and token_id in (None, i)]
            if not found:
                which = f"no token {token_id}" if token_id else "no token"
                raise CredentialsError(
                    f"{self.path}: client {name[:80]!r} has {which}; `planc certs tokens` lists them"
                )
            for each in found:
                del tokens[each]
        return len(found)

    @contextmanager
    def _changing(self) -> Generator[dict[str, Entry]]:
        """The entries, to change; written when the block ends well. Others wait for their turn."""
        files.make_folder(self.path.parent)
        descriptor = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            tokens = self._decode() if self.path.exists() else {}
            yield tokens
            data = msgspec.json.format(msgspec.json.encode(_File(1, tokens)), indent=2)
            files.replace(self.path, data + b"\n", files.PRIVATE)
        finally:
            os.close(descriptor)


def check_token(store: TokenStore, presented: str, now: datetime | None = None) -> Identity | None:
    """The client who shows this token, or None: it is unknown, wrong, expired or revoked.

    Which of these it is, nobody is told, and the time that a comparison takes says nothing of the token that
    is expected. A file of tokens that cannot be read accepts none; the log says so.
    """
    try:
        entries = store.entries()
    except CredentialsError as error:
        _LOG.error("no token is accepted: %s", error)
        return None
    form = _TOKEN.fullmatch(presented)
    entry = entries.get(form[1]) if form else None
    good = hmac.compare_digest(_hash(presented), entry.sha256 if entry else _NOBODY)
    if entry is None or not good:
        return None
    if entry.expires is not None and (now or datetime.now(UTC)) > entry.expires:
        return None
    return Identity(entry.name, Role.CLIENT)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


__all__ = ["FILE", "Entry", "NewToken", "TokenStore", "check_token"]
