"""What the handles' modules share of a tensor handle: that it has a type.

Exists so that none imports another.
"""

from __future__ import annotations

from planc.ir import TensorType


class HasType:
    """Something remote whose type is known here."""

    tensor_type: TensorType
