"""What is said where a network is asked for and the extra that it needs is not installed."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from planc.errors import InputError


@contextmanager
def network_extra(what: str) -> Generator[None]:
    """Imports of gRPC and cryptography, and of what needs them.

    Args:
        what: needs them; begins the text of the error.

    Raises:
        InputError: one of them is missing.
    """
    try:
        yield
    except ImportError as error:
        raise InputError(
            f"{what} needs the extra 'network' ({error.name} is missing): pip install 'planc[network]'"
        ) from None
