"""The audit log of a worker: append-only JSON lines, each with the hash of the one before it.

It holds who did what with which data and what left; never elements, never secrets.
"""
