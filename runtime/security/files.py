"""Reads and writes the files of certificates, keys and tokens: whole or not at all, private where need be.

Knows nothing of what is in them, and never says.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from runtime.errors import CredentialsError

PRIVATE = 0o600
PUBLIC = 0o644

_LIMIT = 16 << 20


def read(path: Path, what: str) -> bytes:
    """The bytes of a file that anyone may read.

    Raises:
        CredentialsError: there is none, or it cannot be read; says which file and what is expected in it.
    """
    return _read(path, what, private=False)


def read_private(path: Path, what: str) -> bytes:
    """The bytes of a file that nobody but its owner may open.

    Raises:
        CredentialsError: there is none, it cannot be read, or others may open it.
    """
    return _read(path, what, private=True)


def _read(path: Path, what: str, private: bool) -> bytes:
    try:
        with path.open("rb") as file:
            # Of the open file, not of the path: that may be another one by now.
            mode = os.fstat(file.fileno()).st_mode
            if private and os.name == "posix" and mode & 0o077:
                raise CredentialsError(
                    f"{path}: expected {what} that only its owner may open, its mode is "
                    f"{stat.S_IMODE(mode):o}: chmod 600 {path}"
                )
            data = file.read(_LIMIT + 1)
    except FileNotFoundError:
        raise CredentialsError(f"{path}: no such file; expected {what}") from None
    except OSError as error:
        raise CredentialsError(f"{path}: {what} cannot be read: {error.strerror}") from None
    if len(data) > _LIMIT:
        raise CredentialsError(f"{path}: expected {what}, found more than {_LIMIT >> 20} MB")
    return data


def create(path: Path, data: bytes, mode: int) -> None:
    """Write a new file, whole or not at all.

    Raises:
        CredentialsError: there is a file of this name already; it is left as it is.
        OSError: it cannot be written.
    """
    temporary = _write_beside(path, data, mode)
    try:
        os.link(temporary, path)  # unlike a rename, this never replaces
    except FileExistsError:
        raise CredentialsError(f"{path} is there already, and is not overwritten") from None
    finally:
        temporary.unlink()
    _sync_folder(path.parent)


def replace(path: Path, data: bytes, mode: int) -> None:
    """Write a file, whole or not at all, in place of the one of this name.

    Raises:
        OSError: it cannot be written; the old one is left as it was.
    """
    temporary = _write_beside(path, data, mode)
    try:
        temporary.replace(path)
    except OSError:
        temporary.unlink()
        raise
    _sync_folder(path.parent)


def _write_beside(path: Path, data: bytes, mode: int) -> Path:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    # Closed to others from the first byte on: there is no moment at which a key lies open.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(mode)
    except OSError:
        temporary.unlink()
        raise
    return temporary


def _sync_folder(folder: Path) -> None:
    """Make the new name itself last through a power cut, where folders can be opened."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder that only its owner may open; one that is there must not be open to others' writing.

    Raises:
        CredentialsError: others may write in it, and so swap what is put there.
        OSError: it cannot be made.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        mode = folder.stat().st_mode
        if os.name == "posix" and mode & 0o022:
            raise CredentialsError(
                f"{folder}: others may write in this folder, its mode is {stat.S_IMODE(mode):o}: "
                f"chmod 700 {folder}"
            ) from None


__all__ = ["PRIVATE", "PUBLIC", "create", "make_folder", "read", "read_private", "replace"]
