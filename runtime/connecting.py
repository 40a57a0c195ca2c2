"""`connect`: the handle to a worker that listens elsewhere. Knows addresses and credentials, no tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planc.errors import InputError
from runtime.channels.address import parse
from runtime.channels.base import Connection
from runtime.channels.extra import network_extra
from runtime.channels.streams.channel import StreamChannel
from runtime.channels.unix.client import UnixChannel
from runtime.identity import Role
from runtime.remote.handle import WorkerHandle
from runtime.remote.virtual import ME

if TYPE_CHECKING:
    from runtime.owner import OwnerHandle


@dataclass(frozen=True, slots=True)
class TLS:
    """Whom a caller trusts, and what it shows: files (PEM) as ``planc certs`` makes them.

    Attributes:
        ca: the certificate of the authority that vouches for workers.
        cert: the caller's own certificate, where it has one.
        key: the private key to it.
    """

    ca: str | Path
    cert: str | Path | None = None
    key: str | Path | None = None


def connect(
    address: str,
    *,
    tls: TLS | None = None,
    token: str | None = None,
    worker: str = "",
    client: str = ME,
    timeout: float = 600.0,
    patience: float = 20.0,
    pipelined: bool = True,
) -> WorkerHandle:
    """A handle to the worker that listens at an address: the same as a `VirtualWorker` is for one here.

    Args:
        address: ``grpc://host:port``, ``grpcs://host:port`` (TLS), or ``unix:path``. The first two need the
            extra ``network``.
        tls: for ``grpcs``: whom to trust, and the certificate that says who the caller is.
        token: shown to a worker that knows the caller by one instead.
        worker: the id of the worker that is meant. Over TLS its certificate has to be that worker's, wherever
            it runs; without, that of the host that it runs on.
        client: the caller's name, where the worker takes its word: without certificate and token.
        timeout: seconds after which a call without a reply raises DeadlineExceeded.
        patience: seconds for which a worker that does not answer is tried again, now and after a break.
            What is unanswered then is sent again; a worker applies a request once.
        pipelined: send eager operations without waiting for each other. An error of one is then raised by
            a later call, and nothing behind it is applied.

    Raises:
        InputError: the address or the arguments do not fit.
        CredentialsError: a certificate, key or token cannot be used.
        ConnectionLost: nobody answers, or another worker does.
        PermissionDenied: the worker does not let this caller in.
    """
    channel = open_channel(
        address,
        tls=tls,
        token=token,
        worker=worker,
        client=client,
        timeout=timeout,
        patience=patience,
    )
    pipeline = channel if pipelined else None
    return WorkerHandle(channel.worker, Connection(channel, channel.client, pipeline=pipeline))


def open_channel(
    address: str,
    *,
    tls: TLS | None = None,
    token: str | None = None,
    worker: str = "",
    client: str = ME,
    role: Role = Role.CLIENT,
    timeout: float = 600.0,
    patience: float = 20.0,
) -> StreamChannel[Any]:
    """The channel under `connect`; a worker opens one to its peer.

    Raises:
        InputError, CredentialsError, ConnectionLost, PermissionDenied: see `connect`.
    """
    where = parse(address)
    if where.secure and tls is None:
        raise InputError(f"{address}: TLS needs to know whom to trust: tls=TLS(ca=...)")
    if not where.secure and (tls is not None or token is not None):
        raise InputError(f"{address} is not encrypted: certificates and tokens are for grpcs://host:port")
    channel: StreamChannel[Any]
    if where.path:
        channel = UnixChannel(where, client, role, timeout=timeout, patience=patience)
    else:
        with network_extra(f"a worker at {address}"):
            from runtime.channels.grpc import client as grpc
            from runtime.security import credentials
        shown: Any = None
        options: list[tuple[str, str]] = []
        if tls is not None:
            cert, key = (Path(path) if path is not None else None for path in (tls.cert, tls.key))
            shown = credentials.channel_credentials(Path(tls.ca), cert, key, token)
            options += credentials.pinning_options(worker) if worker else []
        channel = grpc.GrpcChannel(
            where,
            shown,
            () if where.secure else grpc.words(client, role),
            timeout=timeout,
            patience=patience,
            options=options,
        )
    if worker and channel.worker != worker:
        channel.close()
        raise InputError(f"worker {channel.worker!r} listens at {address}, not {worker!r}")
    return channel


def connect_owner(socket: str | Path | None = None) -> OwnerHandle:
    """The handle of a worker's owner, at the machine where it runs.

    Args:
        socket: the path of the worker's socket; without it that of the only worker that runs here.

    Raises:
        InputError: none runs, or several do.
        ConnectionLost: nobody answers.
    """
    from runtime.owner import OwnerHandle
    from runtime.serving import sockets

    path = sockets.check(Path(socket)) if socket is not None else sockets.find()
    channel = open_channel(f"unix:{path}", timeout=60.0, patience=2.0)
    return OwnerHandle(Connection(channel, channel.client))
