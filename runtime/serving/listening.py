"""Where a worker listens: a server for each address that its settings name, and one for its owner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from planc.errors import InputError
from runtime.channels.address import Address, parse
from runtime.channels.extra import network_extra
from runtime.channels.streams.server import Listening
from runtime.channels.unix import callers as unix_callers
from runtime.channels.unix.server import UnixListening
from runtime.identity import Identity, Role
from runtime.serving import sockets
from runtime.serving.settings import Settings
from runtime.worker import Worker


def check_installed(settings: Settings, addresses: Sequence[Address]) -> None:
    """See whether what the addresses of a worker and its peers need is installed: unix sockets need nothing.

    Raises:
        InputError: it is not.
    """
    for address in addresses:
        if not address.path:
            _need_network(f"listening at {address}")
    for address in map(parse, settings.peers.values()):
        if not address.path:
            _need_network(f"a peer at {address}")


def check_certificate(settings: Settings) -> None:
    """See whether the certificate is the worker's own.

    Raises:
        InputError: it is another's.
        CredentialsError: it cannot be used.
    """
    if settings.pair is None:
        return
    _need_network("--tls-cert")
    from runtime.security import credentials
    from runtime.security.identity import words

    pair = credentials.load_pair(*settings.pair)
    if pair.identity != Identity(settings.id, Role.WORKER):
        raise InputError(
            f"{settings.cert} is the certificate of {words(pair.identity)}: worker {settings.id!r} "
            "needs its own"
        )


def listen_for_owner(worker: Worker, settings: Settings) -> Listening:
    """Listen at the socket of the worker's owner.

    Raises:
        InputError: that cannot be.
    """
    own = sockets.check(settings.socket or sockets.default(settings.id))
    few = replace(settings.server, streams=8, client_streams=8)
    return UnixListening(worker, Address(path=str(own)), unix_callers.owner, few)


def listen(worker: Worker, settings: Settings, address: Address) -> Listening:
    """Listen for clients and peers.

    Raises:
        InputError: the address is taken, or cannot be listened at.
        CredentialsError: a file of the settings cannot be used.
    """
    if address.path:
        return UnixListening(worker, address, unix_callers.by_their_word, settings.server)
    from runtime.channels.grpc import callers
    from runtime.channels.grpc.server import GrpcListening
    from runtime.security import credentials
    from runtime.security.tokens import TokenStore

    if settings.pair is None:
        return GrpcListening(worker, address, callers.by_their_word, None, settings.server)
    shown = credentials.server_credentials(*settings.pair, settings.client_ca)
    authenticate = callers.by_certificate
    if settings.tokens is not None:
        store = TokenStore(settings.tokens)
        store.entries()  # a file that is missing or damaged is found now, not when nobody gets in
        authenticate = callers.by_token(store)
    return GrpcListening(worker, address, authenticate, shown, settings.server)


def _need_network(what: str) -> None:
    with network_extra(what):
        from runtime.channels.grpc import server as server
