"""Where a worker's owner reaches it: a unix socket that only they can open, found by the worker's name."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

from planc.errors import InputError
from runtime.identity import check_name

_MAX_PATH = 100
"""Bytes of the path of a unix socket; the system's own limit is little more."""


def folder() -> Path:
    """The folder of all sockets of this user, made if it is not there, with mode 0700.

    Raises:
        InputError: somebody else has made it.
    """
    base = os.environ.get("XDG_RUNTIME_DIR")
    path = Path(base) / "planc" if base else Path(tempfile.gettempdir()) / f"planc-{os.getuid()}"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise InputError(
            f"{path}: expected a folder that only you can open: remove it, or give --socket PATH"
        )
    return path


def default(worker: str) -> Path:
    """The socket of a worker's owner, where nothing else is said."""
    return folder() / f"{check_name(worker)}.sock"


def check(path: Path) -> Path:
    """The path, absolute.

    Raises:
        InputError: it is too long for a socket.
    """
    whole = path.absolute()
    if len(os.fsencode(whole)) > _MAX_PATH:
        raise InputError(
            f"{whole}: the path of a socket has at most {_MAX_PATH} bytes; give a shorter --socket"
        )
    return whole


def find() -> Path:
    """The socket of the only worker that runs here.

    Raises:
        InputError: none runs, or several do.
    """
    live = [path for path in sorted(folder().glob("*.sock")) if _answers(path)]
    if not live:
        raise InputError("no worker of yours runs on this machine: say which one with --socket PATH")
    if len(live) > 1:
        listed = ", ".join(map(str, live))
        raise InputError(f"{len(live)} workers run on this machine: say which one with --socket: {listed}")
    return live[0]


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
