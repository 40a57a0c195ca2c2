"""One worker with all that makes it a process of its own: data, store, policy, log, and where it listens."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from planc.errors import InputError
from planc.ir import TensorType, type_of
from runtime.access.file import load_policy
from runtime.audit.log import AuditLog
from runtime.channels.address import Address
from runtime.channels.base import Channel
from runtime.channels.streams.server import Listening
from runtime.connecting import TLS, open_channel
from runtime.durable import DurableStore
from runtime.errors import PermissionDenied
from runtime.identity import Role
from runtime.policy import NETWORK_RIGHTS, Policy
from runtime.serving.data import Source, read
from runtime.serving.listening import check_certificate, check_installed, listen, listen_for_owner
from runtime.serving.settings import Settings
from runtime.worker import Worker

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Offered:
    """A tensor that a worker offers, without its elements."""

    name: str
    type: TensorType
    private: bool
    tags: tuple[str, ...]


class Serving:
    """A worker that listens, until it is closed. Nothing is left open where it cannot be started.

    Args:
        settings: how it is run.

    Attributes:
        settings: the same.
        worker: the worker.
        offered: what it offers.

    Raises:
        InputError: the settings do not fit, or an address is taken.
        DataError: data cannot be read.
        CredentialsError, PolicyError, StorageError, AuditFailed: a file cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        addresses = settings.check()
        check_installed(settings, addresses)
        self._done = threading.Event()
        self.offered: list[Offered] = []
        self._listening: list[Listening] = []
        policy = _policy(settings)
        for name in sorted(settings.peers):
            if not policy.may_send_to(name):
                _log.warning(
                    "nothing goes to peer %r: it is not among worker.peers of %s", name, settings.policy
                )
        self.worker = self._make_worker(policy)
        try:
            for source in settings.data:
                self._offer(source)
            check_certificate(settings)
            self._listening.append(listen_for_owner(self.worker, settings))
            for address in addresses:
                self._listening.append(listen(self.worker, settings, address))
            _log.info("ready at %s", ", ".join(map(str, self.addresses)))
        except BaseException:
            self.close(0.0)
            raise

    @property
    def addresses(self) -> list[Address]:
        """Where clients reach it."""
        return [listening.address for listening in self._listening[1:]]

    @property
    def socket(self) -> Path:
        """Where its owner reaches it."""
        return Path(self._listening[0].address.path)

    def run(self, ready: Callable[[], None]) -> None:
        """Serve until SIGTERM or SIGINT, then let what runs end. A second one ends the process at once.

        Args:
            ready: called once, when signals are heeded.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _frame: self._stop(number))
        try:
            ready()
            self._done.wait()
        finally:
            self.close()
        _log.info("stopped")

    def close(self, grace: float = threading.TIMEOUT_MAX) -> bool:
        """Stop listening, let what runs end, and close the store.

        Args:
            grace: seconds to wait for what runs; by default until it ended (the policy bounds runs).

        Returns:
            Whether all of it ended.
        """
        self._done.set()
        own, others = self._listening[:1], self._listening[1:]
        ended: list[bool] = []
        if others:
            with ThreadPoolExecutor(len(others)) as pool:  # all refuse what is new before one is waited for
                ended += pool.map(lambda listening: listening.close(grace), others)
        ended += [listening.close(grace) for listening in own]
        self._listening.clear()
        self.worker.close()
        return all(ended)

    def _stop(self, number: int) -> None:
        name = signal.Signals(number).name
        if self._done.is_set():
            _log.warning("%s again: stops at once", name)
            os._exit(128 + number)  # threads that compute cannot be ended otherwise; a store survives this
        _log.info("%s: finishes what runs (another one stops it at once)", name)
        self._done.set()

    def _make_worker(self, policy: Policy) -> Worker:
        settings = self.settings
        try:
            device = torch.device(settings.device)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(
                f"the device {settings.device!r} cannot be used: {str(error).splitlines()[0]}"
            ) from None
        durable = DurableStore(settings.store) if settings.store is not None else None
        audit = None
        try:
            audit = AuditLog(settings.log) if settings.log is not None else None
            return Worker(
                settings.id,
                device,
                peers=self._peer,
                limits=settings.limits,
                policy=policy,
                durable=durable,
                audit=audit,
            )
        except BaseException:
            for part in (audit, durable):
                if part is not None:
                    part.close()
            raise

    def _offer(self, source: Source) -> None:
        for offer in read(source):
            self.worker.add(
                offer.tensor,
                tags=offer.tags,
                description=offer.description,
                private=source.private,
                name=offer.name,
            )
            found = type_of(offer.tensor)
            assert found is not None, "what was read is of a dtype that plans have"
            self.offered.append(Offered(offer.name, found, source.private, offer.tags))

    def _peer(self, name: str) -> Channel:
        """The way to another worker: only to those that the owner named, at the addresses they gave."""
        settings = self.settings
        address = settings.peers.get(name)
        if address is None:
            raise PermissionDenied(
                f"worker {settings.id!r} does not know where {name!r} is: its owner has to say it "
                f"(--peer {name}=ADDRESS)"
            )
        tls = None
        if address.startswith("grpcs:") and settings.client_ca is not None:
            tls = TLS(settings.client_ca, settings.cert, settings.key)
        return open_channel(
            address, tls=tls, worker=name, client=settings.id, role=Role.WORKER, timeout=120.0, patience=5.0
        )


def _policy(settings: Settings) -> Policy:
    if settings.policy is not None:
        return load_policy(settings.policy)
    # Whoever names peers and says nothing else means objects to go there; private ones stay all the same.
    return Policy(peers=frozenset(settings.peers), default=replace(NETWORK_RIGHTS, move=None))


__all__ = ["Offered", "Serving"]
