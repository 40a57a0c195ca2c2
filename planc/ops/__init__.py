"""The op tables: one OpDef an op. Importing this package fills the table."""

from planc.ops import (  # noqa: F401 -- imported for their registrations
    elementwise,
    factories,
    linear,
    losses,
    optimizers,
    randomness,
    reductions,
    spatial,
    structured,
    views,
)
from planc.ops.schema import Kind, OpDef, Param, Trait, full_attrs, normalise
from planc.ops.table import all_ops, find, for_target, infer, lookup, node

__all__ = [
    "Kind",
    "OpDef",
    "Param",
    "Trait",
    "all_ops",
    "find",
    "for_target",
    "full_attrs",
    "infer",
    "lookup",
    "node",
    "normalise",
]
