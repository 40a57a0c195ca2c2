"""The workers of an experiment: in this process, elsewhere over gRPC, or on Ray. Knows no data, no plans."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from planc.errors import InputError
from runtime.connecting import TLS, connect
from runtime.federated.experiment import sections as S
from runtime.remote.handle import WorkerHandle
from runtime.remote.virtual import VirtualWorker

Replace = Callable[[WorkerHandle], WorkerHandle | None]


@dataclass(frozen=True)
class Engine:
    """Workers that can be used.

    Attributes:
        workers: their handles.
        replace: gives another for one that was lost; None where there is no other.
    """

    workers: Sequence[WorkerHandle]
    replace: Replace | None = None


@contextmanager
def started(section: S.Workers, folder: Path) -> Generator[Engine]:
    """The workers that a section names; closed afterwards, and ended where they were started here.

    Args:
        folder: what relative paths begin at.

    Raises:
        InputError: the section does not fit together, or an extra is not installed.
        CredentialsError: a certificate, key or token cannot be used.
        ConnectionLost: a worker does not answer.
    """
    with ExitStack() as stack:
        match section:
            case S.InProcess():
                yield Engine([VirtualWorker(f"worker{i + 1}") for i in range(section.count)])
            case S.Grpc():
                ids = section.ids or [""] * len(section.addresses)
                if len(ids) != len(section.addresses):
                    raise InputError(
                        f"workers.ids has {len(ids)} names for {len(section.addresses)} addresses"
                    )
                workers: list[WorkerHandle] = []
                tls, token = _tls(section, folder), _token(section, folder)
                for address, id in zip(section.addresses, ids, strict=True):
                    worker = connect(
                        address,
                        tls=tls,
                        token=token,
                        worker=id,
                        timeout=section.timeout,
                        patience=section.patience,
                    )
                    stack.callback(worker.close)
                    workers.append(worker)
                yield Engine(workers)
            case S.Ray():
                from runtime.channels.ray import RayCluster  # needs an extra

                cluster = stack.enter_context(RayCluster(section.address, section.count))
                yield Engine(cluster.workers, lambda worker: cluster.replace(worker.id))


def names(section: S.Workers) -> list[str]:
    """The workers as people tell them apart before they are there."""
    if isinstance(section, S.Grpc):
        return list(section.addresses)
    return [f"worker{i + 1}" for i in range(section.count)]


def _tls(section: S.Grpc, folder: Path) -> TLS | None:
    if (section.cert is None) != (section.key is None):
        raise InputError("workers.cert and workers.key are given together, and only one of them is")
    if section.ca is None:
        if section.cert is not None or section.token is not None:
            raise InputError("workers.cert and workers.token are for TLS: give workers.ca too")
        return None
    cert, key = (None if path is None else folder / path for path in (section.cert, section.key))
    return TLS(folder / section.ca, cert, key)


def _token(section: S.Grpc, folder: Path) -> str | None:
    return None if section.token is None else (folder / section.token).read_text(encoding="utf-8").strip()


__all__ = ["Engine", "Replace", "names", "started"]
