"""This process's one connection to Ray: a local Ray that is started for it, or a cluster that it joins.

Clusters of workers share it. What was started here is shut down with the last of them; a Ray that somebody
else started, or joined before, is left as it is.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.exceptions as failures

from planc.errors import InputError
from runtime.errors import ConnectionLost

_LONGEST = 30
"""Characters of a folder below which Ray's sockets can have names: a socket's is at most 107 long."""
_LEAST_SHARED = 256 * 2**20
"""Bytes of shared memory that Ray's store is worth having in; it takes no less than 75 MiB."""
_ON_DISK = 2**30
"""Bytes of the store where it has to be in files."""
_PROBE = 5.0
"""Seconds in which a cluster's port has to answer: Ray itself tries for two minutes, and ends the process."""

_lock = threading.Lock()
_users = 0
_ours = False
_folder: Path | None = None
_joined: str | None = None


def enter(address: str | None, *, store_bytes: int | None, logs: bool) -> None:
    """Be connected to Ray: to a local one where no address is given. `leave` ends it.

    Raises:
        InputError: the address is none, or the process is connected to another Ray.
        ConnectionLost: no Ray could be started, or joined.
    """
    global _users, _ours
    with _lock:
        if ray.is_initialized():
            _require_same(address)
        else:
            _users, _ours = 0, True  # whatever was counted: somebody shut Ray down
            _start(store_bytes, logs) if address is None else _join(address, logs)
        _users += 1


def leave() -> None:
    """Give up what `enter` gave; the last one disconnects."""
    global _users
    with _lock:
        _users = max(_users - 1, 0)
        if not _users:
            _disconnect()


def is_connected() -> bool:
    """Whether there is a Ray still: somebody may have shut it down."""
    return ray.is_initialized()


def is_local() -> bool:
    """Whether the Ray is a local one that was started here."""
    return _folder is not None


def _start(store_bytes: int | None, logs: bool) -> None:
    global _folder
    folder = _new_folder()
    try:
        with _quiet():
            ray.init(
                address="local",  # without, the environment could name a cluster
                include_dashboard=False,
                log_to_driver=logs,
                configure_logging=False,
                _temp_dir=str(folder),
                # Workers of Ray's own that nobody may need: one a processor, started beside ours.
                _system_config={"prestart_worker_first_driver": False},
                **storage(folder, store_bytes),
            )
    except (failures.RayError, OSError, RuntimeError, ValueError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise ConnectionLost(f"no Ray could be started here: {error}") from error
    _folder = folder
    atexit.unregister(_disconnect)
    atexit.register(_disconnect)


def _join(address: str, logs: bool) -> None:
    global _joined
    _check(address)
    try:
        with _quiet():
            ray.init(address=address, log_to_driver=logs, configure_logging=False)
    except (failures.RayError, OSError, RuntimeError, ValueError) as error:
        raise ConnectionLost(f"cannot join a Ray cluster at {address!r}: {error}") from error
    _joined = address


def _disconnect() -> None:
    global _folder, _joined, _ours
    if _ours and ray.is_initialized():
        ray.shutdown()
    _ours, _joined = False, None
    if _folder is not None:
        shutil.rmtree(_folder, ignore_errors=True)
        _folder = None


def _require_same(address: str | None) -> None:
    if address in (None, "auto"):
        return
    here = ray.get_runtime_context().gcs_address
    if address not in (here, _joined):
        raise InputError(
            f"this process is connected to the Ray at {here} and can have no second one: leave that first, "
            f"or use address='auto', instead of {address!r}"
        )


def _check(address: str) -> None:
    """Refuse what is no address, and one where nobody listens, before Ray waits for it."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 2**16:
        raise InputError(
            f"expected None (a Ray of one's own), 'auto', or 'host:port' of a Ray cluster that this machine "
            f"is part of, got {address!r}"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE).close()
    except OSError as error:
        raise ConnectionLost(f"no Ray cluster answers at {address!r}: {error}") from None


def storage(folder: Path, wanted: int | None) -> dict[str, Any]:
    """Where Ray shall keep its objects, and how many bytes; left to Ray where shared memory has room."""
    free = _shared_memory()
    if wanted is None and free >= _LEAST_SHARED:
        return {}
    if wanted is not None and wanted <= free:
        return {"object_store_memory": wanted}
    # Containers often have 64 MiB: said where to put its files, Ray neither fails nor complains.
    return {"object_store_memory": wanted or _ON_DISK, "_plasma_directory": str(folder)}


def _shared_memory() -> int:
    try:
        found = os.statvfs("/dev/shm")
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize


def _new_folder() -> Path:
    bases = [base for base in (tempfile.gettempdir(), "/tmp") if len(base) <= _LONGEST]
    for base in bases:
        with contextlib.suppress(OSError):
            return Path(tempfile.mkdtemp(prefix="ray-", dir=base))
    raise InputError(
        f"Ray needs a folder for its sockets whose name has at most {_LONGEST} characters, and that can be "
        f"written to: set TMPDIR to one, instead of {tempfile.gettempdir()!r}"
    )


@contextmanager
def _quiet() -> Generator[None]:
    """Keep Ray from telling how it starts; what goes wrong is an exception anyway."""
    log = logging.getLogger("ray")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


__all__ = ["enter", "is_connected", "is_local", "leave", "storage"]
