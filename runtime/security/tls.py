"""Loads gRPC so that TLS below 1.3 is refused. Everything here that uses gRPC takes it from this module.

gRPC for Python has no setting for a least TLS version. But its list of TLS 1.2 ciphers is read from the
environment, once, while it is imported, and TLS 1.3 has ciphers of its own. With only RSA ciphers in that
list and only elliptic-curve keys at servers (`credentials` takes no other), no TLS 1.2 handshake can succeed.
Where a program imported gRPC before us it is too late for that; so the version of every connection is also
checked when its peer is (`credentials.check_transport`).
"""

from __future__ import annotations

import os

_SETTINGS = {
    # Those of gRPC's own default that need an RSA key: other gRPC services keep working in the same program.
    "GRPC_SSL_CIPHER_SUITES": "ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES256-GCM-SHA384",
    # A connection that a worker closes is no news for whoever watches standard error.
    "GRPC_VERBOSITY": "ERROR",
}

# What somebody chose stays. Ours goes after the import: child processes are not ours to configure.
_ours = {name: value for name, value in _SETTINGS.items() if name not in os.environ}
os.environ.update(_ours)
try:
    import grpc
finally:
    for _name in _ours:
        del os.environ[_name]

__all__ = ["grpc"]
