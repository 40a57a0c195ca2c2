"""`planc certs`: an authority, certificates and tokens for those who compute together over a network.

Options and words over `runtime.security`, which is imported only when a command needs it: cryptography comes
with the `network` extra.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from planc.errors import PlancError
from planc.text.suggest import count_of

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

app = typer.Typer(
    name="certs", help="Say who is who over a network: certificates and tokens.", no_args_is_help=True
)
issue = typer.Typer(name="issue", help="Issue a certificate, with its private key.", no_args_is_help=True)
app.add_typer(issue)

EXTRA = "this command needs the network extra: pip install 'planc[network]'"

Dir = Annotated[Path, typer.Option("--dir", metavar="DIR", help="The folder of the authority's files.")]
Days = Annotated[int, typer.Option(min=1, max=36_500, metavar="N", help="How long it is valid.")]
Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="1 to 64 letters, digits, '.', '_' or '-'.", show_default=False),
]
Renew = Annotated[
    bool, typer.Option("--renew", help="Replace the certificate that is there; its key and hosts stay.")
]
_CERTS = Path("certs")


@contextmanager
def _network() -> Generator[None]:
    """Where the network extra is missing, say so instead of which module that is."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "cryptography":
            raise
        raise PlancError(EXTRA) from None


@app.command("init")
def init_command(
    folder: Dir = _CERTS,
    name: Annotated[
        str, typer.Option(metavar="NAME", help="What people call the collaboration.")
    ] = "collaboration",
    days: Days = 3650,
) -> None:
    """Make a certificate authority for one collaboration."""
    with _network():
        from runtime.security.authority import CERTIFICATE, KEY, Authority
        from runtime.security.identity import moment

    made = Authority.create(folder, name, days)
    typer.echo(f"made the authority {name!r}, valid until {moment(made.certificate.not_valid_after_utc)}")
    typer.echo(f"  {folder / CERTIFICATE}  give it to everyone who takes part")
    typer.echo(f"  {folder / KEY}  keep it: whoever has it can make a certificate of any name")


@issue.command("worker")
def worker_command(
    name: Name,
    hosts: Annotated[
        list[str] | None,
        typer.Option(
            "--host",
            metavar="HOST",
            help="A DNS name or IP address where clients reach it; repeatable.  [default: this machine only]",
        ),
    ] = None,
    days: Days = 90,
    folder: Dir = _CERTS,
    renew: Renew = False,
) -> None:
    """Issue a worker's certificate; it is a client of other workers, too."""
    _issue("worker", name, hosts or [], days, folder, renew)


@issue.command("client")
def client_command(name: Name, days: Days = 90, folder: Dir = _CERTS, renew: Renew = False) -> None:
    """Issue a client's certificate."""
    _issue("client", name, [], days, folder, renew)


def _issue(
    role: Literal["client", "worker"], name: str, hosts: list[str], days: int, folder: Path, renew: bool
) -> None:
    with _network():
        from runtime.identity import Identity, Role
        from runtime.security.authority import CERTIFICATE, Authority
        from runtime.security.identity import moment

    made = Authority.open(folder).issue(Identity(name, Role(role)), hosts, days, renew)
    done = "renewed" if renew else "issued"
    typer.echo(f"{done} {role} {name}, valid until {moment(made.expires)}")
    if made.hosts:
        typer.echo(f"reached at {', '.join(made.hosts)}")
    typer.echo(f"give {role} {name}, and nobody else the key:")
    for path in (made.certificate, *(() if renew else (made.key,)), folder / CERTIFICATE):
        typer.echo(f"  {path}")


@app.command("show")
def show_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A certificate.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for machines.")] = False,
) -> None:
    """Say whose certificate this is, for what, and until when."""
    with _network():
        from runtime.security import files
        from runtime.security.identity import parse_certificates

    found = _described(parse_certificates(files.read(file, "a certificate"), str(file))[0])
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for key, value in found.items():
        shown = ", ".join(value) if isinstance(value, list) else str(value)
        typer.echo(f"{key + ':':<13}{shown}")


def _described(certificate: Certificate) -> dict[str, str | list[str]]:
    from cryptography.hazmat.primitives import hashes

    from runtime.security.identity import hosts_of, identity_of_certificate, is_authority

    if is_authority(certificate):
        name, role = certificate.subject.rfc4514_string(), "authority"
    else:
        identity = identity_of_certificate(certificate)
        name, role = identity.name, identity.role.value
    begins, ends, now = certificate.not_valid_before_utc, certificate.not_valid_after_utc, datetime.now(UTC)
    found: dict[str, str | list[str]] = {"name": name, "role": role}
    if hosts := hosts_of(certificate):
        found["hosts"] = list(hosts)
    found["issuer"] = certificate.issuer.rfc4514_string()
    found["valid from"], found["until"] = begins.isoformat(), ends.isoformat()
    found["now"] = "expired" if now > ends else "not yet valid" if now < begins else "valid"
    found["serial"] = f"{certificate.serial_number:x}"
    found["sha256"] = certificate.fingerprint(hashes.SHA256()).hex()
    return found


@app.command("token")
def token_command(
    name: Name,
    folder: Dir = _CERTS,
    days: Annotated[
        int | None,
        typer.Option(min=1, max=36_500, metavar="N", help="How long it is good.  [default: until revoked]"),
    ] = None,
) -> None:
    """Make a token for a client, and print it: this once."""
    with _network():
        from runtime.security.identity import moment
        from runtime.security.tokens import FILE, TokenStore

    ends = None if days is None else datetime.now(UTC) + timedelta(days=days)
    made = TokenStore(folder / FILE).add(name, ends)
    typer.echo(made.text)  # alone on standard output, so that it can go straight into a file
    until = "until it is revoked" if ends is None else f"until {moment(ends)}"
    typer.echo(f"token {made.id} of client {name}, good {until}; it is not shown again", err=True)
    typer.echo(f"{folder / FILE} has its hash: workers that read this file accept it", err=True)


@app.command("tokens")
def tokens_command(folder: Dir = _CERTS) -> None:
    """List the tokens: ids, clients and ends, never the tokens."""
    with _network():
        from runtime.security.identity import moment
        from runtime.security.tokens import FILE, TokenStore

    entries = TokenStore(folder / FILE).entries()
    for token_id, entry in sorted(entries.items(), key=lambda item: (item[1].name, item[1].created)):
        ends = "until revoked" if entry.expires is None else f"until {moment(entry.expires)}"
        typer.echo(f"{token_id}  {entry.name}  made {moment(entry.created)}, {ends}")
    typer.echo(count_of(len(entries), "token"), err=True)


@app.command("revoke-token")
def revoke_command(
    name: Name,
    token_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="Only this one.  [default: all of the client's]")
    ] = None,
    folder: Dir = _CERTS,
) -> None:
    """Take back a client's tokens, all or one, at once."""
    with _network():
        from runtime.security.tokens import FILE, TokenStore

    number = TokenStore(folder / FILE).revoke(name, token_id)
    typer.echo(f"revoked {count_of(number, 'token')} of client {name}")


__all__ = ["EXTRA", "app"]
