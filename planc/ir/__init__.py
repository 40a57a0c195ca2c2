"""The intermediate representation: types, dims, graphs. Data only; see `planc.ops` for what ops mean."""

from planc.ir.dims import Dim, DimExpr, Shape, sym
from planc.ir.graph import (
    MAX_DIM,
    Attribute,
    Constant,
    DimVar,
    Graph,
    Input,
    Location,
    Node,
    Operand,
    Output,
    Role,
    Scalar,
    Value,
)
from planc.ir.types import DType, TensorType, from_torch, type_of

__all__ = [
    "MAX_DIM",
    "Attribute",
    "Constant",
    "DType",
    "Dim",
    "DimExpr",
    "DimVar",
    "Graph",
    "Input",
    "Location",
    "Node",
    "Operand",
    "Output",
    "Role",
    "Scalar",
    "Shape",
    "TensorType",
    "Value",
    "from_torch",
    "sym",
    "type_of",
]
