"""The command line ``planc``: options and words over the library. Decides nothing of its own."""

from planc.cli.app import app, main

__all__ = ["app", "main"]
