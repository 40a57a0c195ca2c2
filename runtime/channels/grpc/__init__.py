"""The channel to a worker over a network: frames in chunks over a gRPC stream, plain or over TLS.

Needs the extra ``network``. `client` is the caller's end, `server` the worker's; `chunks` is what both speak.
"""

# Before any module here imports gRPC: see there why.
from runtime.security import tls as tls
