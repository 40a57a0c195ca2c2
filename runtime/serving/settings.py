"""How a worker is run, and whether that fits together. Opens nothing and reads no file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from planc.errors import InputError
from runtime.channels.address import Address, parse, parse_listen
from runtime.channels.streams.server import ServerLimits
from runtime.identity import check_name
from runtime.limits import WorkerLimits
from runtime.serving.data import Source

PORT = 7700
"""Where a worker listens, unless another port is given."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How a worker is run.

    Attributes:
        id: its name.
        listen: ``host:port`` or ``unix:path``.
        data: what it offers.
        store: the folder that keeps what it holds; without it all is gone with the process.
        policy: the policy file; without it clients may use what is offered and run plans on it, and nothing
            private leaves.
        audit: the file of the audit log; in the store where there is one.
        cert: its certificate, for TLS.
        key: the private key to it.
        client_ca: of the authority whose clients and workers are let in by their certificates.
        tokens: the file of the tokens by which clients are let in instead.
        peers: addresses of other workers, by name: where objects may be sent to.
        socket: for its owner.
        device: where its tensors live.
        limits: what it accepts and keeps.
        server: what its server takes on.
    """

    id: str
    listen: Sequence[str] = (f"127.0.0.1:{PORT}",)
    data: Sequence[Source] = ()
    store: Path | None = None
    policy: Path | None = None
    audit: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    tokens: Path | None = None
    peers: Mapping[str, str] = field(default_factory=dict[str, str])
    socket: Path | None = None
    device: str = "cpu"
    limits: WorkerLimits = field(default_factory=WorkerLimits)
    server: ServerLimits = field(default_factory=ServerLimits)

    @property
    def log(self) -> Path | None:
        """The file of the audit log, if there is one."""
        if self.audit is None and self.store is not None:
            return self.store / "audit.jsonl"
        return self.audit

    @property
    def pair(self) -> tuple[Path, Path] | None:
        """Certificate and private key, where TLS is spoken."""
        return None if self.cert is None or self.key is None else (self.cert, self.key)

    def check(self) -> list[Address]:
        """Where it is going to listen.

        Raises:
            InputError: the settings do not fit together, or would let in people whom nobody knows.
            CredentialsError: a name cannot be one.
        """
        check_name(self.id)
        self._check_tls()
        self._check_peers()
        addresses = [parse_listen(text, self.cert is not None) for text in self.listen]
        for address in addresses:
            self._check_open(address)
        return addresses

    def _check_tls(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise InputError("a certificate and its private key are given together: --tls-cert and --tls-key")
        if self.cert is None and (self.client_ca is not None or self.tokens is not None):
            raise InputError("--client-ca and --tokens are for TLS: give --tls-cert and --tls-key too")
        if self.client_ca is not None and self.tokens is not None:
            raise InputError(
                "a worker asks clients either for certificates (--client-ca) or for tokens (--tokens), "
                "not for both"
            )
        if self.cert is not None and self.client_ca is None and self.tokens is None:
            raise InputError(
                "with TLS a worker wants to know who calls: give --client-ca (certificates) or --tokens"
            )

    def _check_peers(self) -> None:
        for name, text in self.peers.items():
            if check_name(name) == self.id:
                raise InputError(f"--peer {name}={text}: a worker is no peer of its own")
            if parse(text).secure and self.client_ca is None:
                raise InputError(
                    f"--peer {name}={text}: over TLS both workers show certificates: "
                    "give --tls-cert, --tls-key and --client-ca"
                )

    def _check_open(self, address: Address) -> None:
        """Refuse to be reached from elsewhere by people nobody knows."""
        if address.local:
            return
        if self.cert is None:
            raise InputError(
                f"--listen {address.target} is open to other machines, where a worker listens with TLS only: "
                "give --tls-cert, --tls-key and --client-ca (`planc certs` makes them), or listen at "
                "127.0.0.1"
            )


__all__ = ["PORT", "Settings"]
