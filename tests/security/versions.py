"""Run as a program: which versions of TLS a worker speaks, as JSON.

A program of its own, because gRPC reads its settings once in a process: ``late`` imports it before `planc`
can set any, as a program may that uses gRPC for something else.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
from pathlib import Path

if sys.argv[1] == "late":
    import grpc  # noqa: F401

from runtime.security.authority import Authority
from runtime.security.credentials import Identity, Role
from tests.security.helpers import bare_call, tls, worker


def main(folder: Path) -> None:
    authority = Authority.create(folder, "test", 2)
    authority.issue(Identity("ann", Role.CLIENT))
    found: dict[str, object] = {"left": os.environ.get("GRPC_SSL_CIPHER_SUITES")}
    with worker(authority) as served:
        for label, version in (
            ("any", None),
            ("1.3", ssl.TLSVersion.TLSv1_3),
            ("1.2", ssl.TLSVersion.TLSv1_2),
        ):
            try:
                with tls(served.port, folder, version) as connection:
                    found[label] = connection.version()
                    bare_call(connection)
            except (ssl.SSLError, ConnectionError):
                found[label] = "refused"
    print(json.dumps({**found, "decisions": served.decisions}))


if __name__ == "__main__":
    main(Path(sys.argv[2]))
