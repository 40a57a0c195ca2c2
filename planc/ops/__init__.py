"""The op tables: one OpDef an op. Importing this package fills the table."""

from importlib import import_module

from planc.ops.schema import Kind, OpDef, Param, Trait, full_attrs, normalise
from planc.ops.table import all_ops, find, for_target, infer, lookup, node

FAMILIES = (
    "elementwise",
    "activations",
    "reductions",
    "views",
    "indexing",
    "linear",
    "fused",
    "convolution",
    "pooling",
    "resampling",
    "normalisation",
    "attention",
    "losses",
    "factories",
    "randomness",
    "optimizers",
    "structured",
)
"""The modules that hold the ops, in the order in which documentation lists them."""
for _family in FAMILIES:
    import_module(f"planc.ops.{_family}")

__all__ = [
    "FAMILIES",
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
