"""What can be worked out without any tensor: types, dims and the other constants that a plan's text holds.

Expressions that compute are the affair of `planc.text.expressions`.
"""

from __future__ import annotations

from planc.ir import Dim, DimExpr, DType, Operand, TensorType, Value
from planc.ir.dims import sym
from planc.text.arithmetic import check_product, combine, negate
from planc.text.suggest import nearest
from planc.text.syntax import Call, Chain, Expr, ListOf, Literal, Name, Negative, Problem, TypeExpr

NUMBERS = (bool, int, float, DimExpr)

Piece = Operand | str | tuple["Piece", ...]
"""What an expression can mean before it is known what it is for."""


_USUAL = {
    "float": DType.F32,
    "float16": DType.F16,
    "float32": DType.F32,
    "float64": DType.F64,
    "half": DType.F16,
    "double": DType.F64,
    "bfloat16": DType.BF16,
    "int": DType.I64,
    "int8": DType.I8,
    "int16": DType.I16,
    "int32": DType.I32,
    "int64": DType.I64,
    "long": DType.I64,
    "uint8": DType.U8,
    "boolean": DType.BOOL,
}
"""Element types by the names that they have elsewhere."""


class Dims:
    """The named dims of a plan, and what can be worked out from them without any tensor."""

    def __init__(self) -> None:
        self.names: dict[str, None] = {}

    def type(self, written: TypeExpr) -> TensorType:
        """The type that was written."""
        try:
            dtype = DType(written.dtype.text)
        except ValueError:
            if (usual := _USUAL.get(written.dtype.text.rpartition(".")[2])) is not None:
                hint = f"did you mean '{usual}'?"
                raise Problem(
                    f"there is no element type {written.dtype.text!r}", written.dtype.at, hint
                ) from None
            hint = nearest(
                written.dtype.text,
                (d.value for d in DType),
                "element types: " + ", ".join(d.value for d in DType),
            )
            raise Problem(
                f"there is no element type {written.dtype.text!r}", written.dtype.at, hint
            ) from None
        shape = tuple(self.dim(expr) for expr in written.dims)
        check_product(shape, written.at)
        return TensorType(dtype, shape)

    def dim(self, expr: Expr) -> Dim:
        """An expression in the place of a dim."""
        value = self.constant(expr)
        if isinstance(value, bool) or not isinstance(value, (int, DimExpr)):
            raise Problem("a dim is an integer or an expression of dims", expr.at)
        if isinstance(value, int) and value < 0:
            raise Problem(
                f"a dim is at least 0, got {value}", expr.at, "a dim that varies has a name: f32[b, 784]"
            )
        return value

    def constant(self, expr: Expr) -> Piece:
        """The value of an expression that names no tensors."""
        if isinstance(expr, Literal):
            return expr.value
        if isinstance(expr, Name):
            if expr.text not in self.names:
                known = (
                    f"dims of this plan: {', '.join(self.names)}"
                    if self.names
                    else "this plan has no named dims"
                )
                hint = nearest(expr.text, self.names, known)
                raise Problem(f"there is no dim {expr.text!r}", expr.at, hint)
            return sym(expr.text)
        if isinstance(expr, ListOf):
            items = tuple(self.constant(item) for item in expr.items)
            check_product(items, expr.at)
            return items
        if isinstance(expr, Negative):
            return negate(number_of(self.constant(expr.operand), expr.operand), expr.at)
        if isinstance(expr, Chain):
            total = number_of(self.constant(expr.first), expr.first)
            for op, operand in expr.rest:
                total = combine(op, total, number_of(self.constant(operand), operand), expr.at)
            return total
        if is_dim_call(expr):
            return self.dim(expr.arguments[0])
        raise Problem(
            "this must be known when the plan is compiled", expr.at, "no tensors, only numbers and dims"
        )


def is_dim_call(call: Call) -> bool:
    """Whether a call is ``dim(...)``: dims, where a tensor of the same name would hide one."""
    written = call.callee.text == "dim" and not call.callee.quoted
    return written and len(call.arguments) == 1 and not call.keywords


def number_of(piece: Piece, expr: Expr) -> bool | int | float | DimExpr:
    """A piece that must be a number or dim."""
    if isinstance(piece, NUMBERS):
        return piece
    raise Problem(f"a number or dim is wanted here, got {show_piece(piece)}", expr.at)


def show_piece(piece: Piece) -> str:
    """A piece as errors name it."""
    if isinstance(piece, Value):
        return str(piece.type)
    if isinstance(piece, tuple):
        return "a list"
    return "none" if piece is None else f"{piece!r}" if isinstance(piece, str) else f"the number {piece}"
