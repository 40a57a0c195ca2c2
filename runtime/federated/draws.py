"""Seeds and keys that depend on seed, round and client alone: whoever draws again draws the same."""

from __future__ import annotations

from hashlib import blake2b

import torch

from planc import key


def client_key(seed: int, round: int, client: int) -> torch.Tensor:
    """A client's random key (``i64[]``) in a round."""
    return key(_hashed(f"{seed}/{round}/{client}"))


def stream(seed: int, purpose: str) -> int:
    """A seed of its own for one purpose: its draws have nothing to do with others of the same seed."""
    return _hashed(f"{seed}/{purpose}")


def _hashed(text: str) -> int:
    # Hashed: sums such as seed + round meet, and then two clients would draw the same.
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


__all__ = ["client_key", "stream"]
