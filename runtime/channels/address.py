"""Where a worker listens, as people write it: ``grpc://host:port``, ``grpcs://host:port``, ``unix:path``."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from planc.errors import InputError

_FORMS = "grpc://host:port, grpcs://host:port (TLS), or unix:path"


@dataclass(frozen=True, slots=True)
class Address:
    """An address of a worker.

    Attributes:
        host: a name or IP address; "" for a unix socket.
        port: its port; 0 lets the system choose one, where a worker listens.
        path: of a unix socket, else "".
        secure: whether TLS is spoken.
    """

    host: str = ""
    port: int = 0
    path: str = ""
    secure: bool = False

    @property
    def target(self) -> str:
        """Host and port, as gRPC writes them.

        Raises:
            InputError: it is that of a unix socket.
        """
        if self.path:
            raise InputError(f"{self} is no address of a network")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        if self.path or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"{'grpcs' if self.secure else 'grpc'}://{self.target}"


def parse(text: str) -> Address:
    """The address that a text stands for.

    Raises:
        InputError: it has none of the forms.
    """
    if text.startswith("unix:"):
        path = text.removeprefix("unix:").removeprefix("//")
        if not path or "\0" in path:  # to the system a path ends there
            raise InputError(f"the address {text!r} has no path: expected {_FORMS}")
        return Address(path=path)
    for scheme, secure in (("grpc://", False), ("grpcs://", True)):
        if text.startswith(scheme):
            host, port = parse_host(text.removeprefix(scheme).rstrip("/"), text)
            if not port:
                raise InputError(f"the address {text!r} has no port: expected {_FORMS}")
            return Address(host, port, secure=secure)
    raise InputError(f"the address {text!r} cannot be read: expected {_FORMS}")


def parse_listen(text: str, secure: bool) -> Address:
    """The address of ``--listen``: ``host:port`` or ``unix:path``; port 0 lets the system choose.

    Raises:
        InputError: it has neither form.
    """
    if text.startswith("unix:"):
        return parse(text)
    host, port = parse_host(text, text)
    return Address(host, port, secure=secure)


def parse_host(text: str, whole: str) -> tuple[str, int]:
    """Host and port of ``host:port``, where an IPv6 address stands in brackets."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise InputError(f"the address {whole!r} cannot be read: write an IPv6 address as [::1]:7000")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise InputError(f"the address {whole!r} cannot be read: expected host:port, port 0 to 65535")
    return host, int(port)
