"""Loads gRPC so that TLS below 1.3 is refused. Everything here that uses gRPC takes it from this module.

gRPC for Python has no setting for a least TLS version. But its list of TLS 1.2 ciphers is read from the
environment, once, while it is imported, and TLS 1.3 has ciphers of its own. With only RSA ciphers in that
list and only elliptic-curve keys at servers (`credentials` takes no other), no TLS 1.2 handshake can succeed.
Where a program imported gRPC before us it is too late for that; so the version of every connection is also
checked when its peer is (`credentials.check_transport`).
"""

from __future__ import annotations

import os

_VARIABLE = "GRPC_SSL_CIPHER_SUITES"
# Those of gRPC's own default that need an RSA key: other gRPC services keep working in the same program.
_RSA_ONLY = "ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES256-GCM-SHA384"

# A list that somebody chose stays. Ours goes after the import: child processes are not ours to configure.
_chosen = _VARIABLE in os.environ
if not _chosen:
    os.environ[_VARIABLE] = _RSA_ONLY
try:
    import grpc
finally:
    if not _chosen:
        del os.environ[_VARIABLE]

__all__ = ["grpc"]
