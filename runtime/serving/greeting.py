"""What a worker says to the person who started it: where it listens, what it offers, what protects it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.channels.address import Address
from runtime.serving.process import Offered, Serving
from runtime.serving.settings import Settings

_ANYWHERE = ("0.0.0.0", "::")
_TAB = 11


@dataclass(frozen=True, slots=True)
class Greeting:
    """What is known of a worker once it listens. No colours, and nothing that a client could have written."""

    settings: Settings
    addresses: Sequence[Address]
    offered: Sequence[Offered]
    socket: Path

    @classmethod
    def of(cls, serving: Serving) -> Greeting:
        """That of a worker that listens."""
        socket = serving.settings.socket or serving.socket
        return cls(serving.settings, serving.addresses, serving.offered, socket)

    def lines(self) -> Iterator[str]:
        """As people read it; names and paths alone make lines long."""
        settings = self.settings
        yield f"worker {settings.id} is ready"
        for address in self.addresses:
            yield from _entry("listens", str(address), self.protection(address))
        yield from self._offers()
        yield from _entry("policy", *self._policy())
        yield from _entry("keeps", self._keeps())
        yield from _entry("audit", str(settings.log) if settings.log is not None else "no log (--audit FILE)")
        if settings.peers:
            yield from _entry("peers", *(f"{name} at {at}" for name, at in sorted(settings.peers.items())))
        yield from _entry("owner", f"planc worker status --socket {self.socket}")
        yield "clients connect with"
        for address in self.addresses:
            yield from (f"  {line}" for line in self.connect(address))
        yield "Ctrl-C stops it, once what runs has ended"

    def protection(self, address: Address) -> str:
        """What keeps strangers away from an address, in plain words."""
        if address.path:
            return "only you: others of this machine cannot open the socket"
        where = "this machine only" if address.local else "open to other machines"
        if self.settings.client_ca is not None:
            return f"{where}; mutual TLS: certificates of {self.settings.client_ca}"
        if self.settings.tokens is not None:
            return f"{where}; TLS, and a token of {self.settings.tokens}"
        return f"{where}; no TLS, and callers are believed their names"

    def connect(self, address: Address) -> Iterator[str]:
        """Python to copy, by which a client connects."""
        settings = self.settings
        if not address.secure:
            yield f'runtime.connect("{address}", client="YOUR_NAME")'
            return
        host = "HOST" if address.host in _ANYWHERE else address.host
        shown = Address(host, address.port, secure=True)
        yield f'runtime.connect("{shown}", worker="{settings.id}",'
        if settings.client_ca is not None:
            yield '    tls=runtime.TLS("ca.pem", "client-YOU.pem", "client-YOU.key"))'
        else:
            yield '    tls=runtime.TLS("ca.pem"), token="planc_...")'

    def _offers(self) -> Iterator[str]:
        if not self.offered:
            yield from _entry("offers", "nothing yet (--data NAME=PATH)")
            return
        rows = [
            (each.name, str(each.type), "private" if each.private else "PUBLIC", " ".join(each.tags))
            for each in self.offered
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        cells = ("  ".join(f"{cell:<{n}}" for cell, n in zip(row, widths, strict=True)) for row in rows)
        yield from _entry("offers", *(line.rstrip() for line in cells))

    def _policy(self) -> Iterator[str]:
        if self.settings.policy is not None:
            yield str(self.settings.policy)
            return
        yield "none (--policy FILE): all may use what is offered and run plans;"
        yield "nothing private leaves but results of plans that you approved"

    def _keeps(self) -> str:
        if self.settings.store is None:
            return "nothing: what clients put here is gone when it stops (--store DIR)"
        return f"all in {self.settings.store}, also over a crash"


def _entry(title: str, *lines: str) -> Iterator[str]:
    for i, line in enumerate(lines):
        yield f"  {title if i == 0 else '':<{_TAB - 2}}{line}"


__all__ = ["Greeting"]
