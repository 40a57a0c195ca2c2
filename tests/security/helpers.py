"""A real gRPC server on loopback that says who called it, or why it refused, and ways to call it."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from runtime.errors import CredentialsError
from runtime.security.authority import Authority
from runtime.security.credentials import (
    Identity,
    Role,
    channel_credentials,
    identity_from_auth_context,
    server_credentials,
)
from runtime.security.identity import words
from runtime.security.tls import grpc

DAY = timedelta(days=1)


def write_key(path: Path, key: Any) -> None:
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(0o600)


def hand_made(
    authority: Authority, identity: Identity, begins: datetime, ends: datetime
) -> tuple[Path, Path]:
    """A certificate of any validity, which `issue` would not make."""
    key = ec.generate_private_key(ec.SECP256R1())
    made = authority.sign(key.public_key(), identity, (), begins, ends)
    path = authority.folder / f"made-{identity.role}-{identity.name}.pem"
    path.write_bytes(made.public_bytes(Encoding.PEM))
    write_key(path.with_suffix(".key"), key)
    return path, path.with_suffix(".key")


def expired(authority: Authority, identity: Identity) -> tuple[Path, Path]:
    now = datetime.now(UTC)
    return hand_made(authority, identity, now - 2 * DAY, now - DAY)


@dataclass
class Server:
    """Where it listens, and what it decided about each call that reached it."""

    port: int
    decisions: list[str] = field(default_factory=list[str])

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@contextmanager
def serving(
    credentials: Any, who: Callable[[Any], Identity] = identity_from_auth_context
) -> Iterator[Server]:
    """A server with these credentials; every call is answered with who it is from."""
    running = grpc.server(ThreadPoolExecutor(2))
    served = Server(running.add_secure_port("127.0.0.1:0", credentials))

    def answer(_request: bytes, context: Any) -> bytes:
        try:
            decision = words(who(context))
        except CredentialsError as error:
            served.decisions.append(str(error))
            context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        served.decisions.append(decision)
        return decision.encode()

    class Handler(grpc.GenericRpcHandler):
        def service(self, handler_call_details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(answer)

    running.add_generic_rpc_handlers((Handler(),))
    running.start()
    try:
        yield served
    finally:
        running.stop(None).wait()


@contextmanager
def worker(authority: Authority, name: str = "bob") -> Iterator[Server]:
    """A worker of this authority that wants certificates."""
    made = authority.issue(Identity(name, Role.WORKER))
    with serving(server_credentials(made.certificate, made.key, authority.folder / "ca.pem")) as served:
        yield served


def call(address: str, credentials: Any, options: Any = ()) -> str:
    """What the server says of the caller.

    Raises:
        grpc.RpcError: it refused.
    """
    with grpc.secure_channel(address, credentials, options=list(options)) as channel:
        return channel.unary_unary("/planc/who")(b"", timeout=20).decode()


def client(authority: Authority, name: str = "ann") -> Any:
    """The credentials of a client of this authority."""
    made = authority.issue(Identity(name, Role.CLIENT))
    return channel_credentials(authority.folder / "ca.pem", made.certificate, made.key)


def tls(port: int, folder: Path, version: ssl.TLSVersion | None) -> ssl.SSLSocket:
    """A connection by Python's own TLS, held to a version, as the client whose files are in a folder."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(folder / "ca.pem")
    context.load_cert_chain(folder / "client-ann.pem", folder / "client-ann.key")
    context.set_alpn_protocols(["h2"])
    if version is not None:
        context.minimum_version = context.maximum_version = version
    plain = socket.create_connection(("127.0.0.1", port), timeout=20)
    try:
        return context.wrap_socket(plain, server_hostname="localhost")
    except BaseException:
        plain.close()
        raise


def bare_call(connection: ssl.SSLSocket) -> None:
    """One gRPC call in as few bytes of HTTP/2 as it takes; returns when the server has closed its stream."""

    def frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
        return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body

    fields = {
        ":method": "POST",
        ":scheme": "https",
        ":path": "/planc/who",
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    block = b"".join(
        b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )
    connection.sendall(
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + frame(4, 0, 0, b"")
        + frame(1, 4, 1, block)
        + frame(0, 1, 1, b"\x00" + struct.pack(">I", 0))
    )
    with connection.makefile("rb") as answers:
        while head := answers.read(9):
            answers.read(int.from_bytes(head[:3], "big"))
            if head[3] in (1, 3) and head[4] & 1 and head[8] == 1:  # the stream's last headers
                return
