"""The channel to a worker on the same machine: whole frames over a unix socket, and nothing in between.

`client` is the caller's end, `server` the worker's; `framing` is what both speak.
"""
