"""Who is who over a network: an authority and its certificates, tokens, and what gRPC needs of both.

Needs the `network` extra, so nothing else in `runtime` imports it before a network is asked for. Opens no
port and no channel, and decides nothing about permission: an `Identity` is all that comes out.
"""
