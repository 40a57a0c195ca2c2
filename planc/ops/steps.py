"""The little programs of `fused.elementwise`: steps over a few tensors, as data, as text, as types, as a run.

The text is a closed language of its own: names of elementwise ops, numbers, words and nothing else. It is
parsed here and reaches no evaluator; one program has one text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from planc.errors import TypeCheckError
from planc.ir import Attribute, DType, Scalar, TensorType, Value
from planc.ops.schema import Kind, OpDef, Param, Trait, normalise
from planc.ops.table import find, infer

MAX_STEPS = 64
MAX_TEXT = 16384
"""How long a program may be, in steps and in characters: a stranger's program must be cheap to check."""


@dataclass(frozen=True, slots=True)
class Ref:
    """What a step reads: the input, or with ``made`` the result of the earlier step, of this number."""

    number: int
    made: bool = False

    def __str__(self) -> str:
        return f"{'s' if self.made else 'x'}{self.number}"


StepOperand = Ref | Scalar | None


@dataclass(frozen=True, slots=True)
class Step:
    """One call of an elementwise op of the table; attributes as a Node stores them."""

    op: str
    operands: tuple[StepOperand, ...]
    attrs: tuple[tuple[str, Attribute], ...] = ()

    def __str__(self) -> str:
        parts = [_show(operand) for operand in self.operands]
        parts += [f"{name}={_show(value)}" for name, value in self.attrs]
        return f"{self.op.removeprefix('aten.')}({', '.join(parts)})"


@dataclass(frozen=True, slots=True)
class Steps:
    """A program: its steps in order, of which the last makes the result.

    >>> str(parse_steps("mul(x0, x1); add(s0, x2, alpha=2); relu(s1)"))
    'mul(x0, x1); add(s0, x2, alpha=2); relu(s1)'
    """

    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return "; ".join(str(step) for step in self.steps)


def stepwise(op: str) -> OpDef | None:
    """The definition of an op that can be a step: elementwise, of torch, of tensors and numbers alone."""
    definition = find(op) if op.startswith("aten.") else None
    if definition is None or not definition.has(Trait.ELEMENTWISE) or definition.has(Trait.RANDOM):
        return None
    return definition if all(p.kind in _STEP_KINDS for p in definition.params) else None


@lru_cache(maxsize=256)
def parse_steps(text: str) -> Steps:
    """The program that a text means.

    Raises:
        TypeCheckError: it means none, or is not written in the one way that its program is.
    """
    if len(text) > MAX_TEXT:
        raise TypeCheckError(f"steps may take {MAX_TEXT} characters, got {len(text)}")
    parts = text.split("; ")
    if len(parts) > MAX_STEPS:
        raise TypeCheckError(f"there may be {MAX_STEPS} steps, got {len(parts)}")
    program = Steps(tuple(_step(part) for part in parts))
    if str(program) != text:
        raise TypeCheckError(f"steps must be written as {str(program)!r}, got {text!r}")
    return program


def step_types(program: Steps, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
    """The types of what the steps make.

    Raises:
        TypeCheckError: a step does not fit what it reads or reads what there is not; something is never
            read; or a step's shape is not the result's.
    """
    types: list[TensorType] = []
    read: set[Ref] = set()
    for number, step in enumerate(program.steps):
        definition = stepwise(step.op)
        if definition is None:
            raise TypeCheckError(f"step {number}: {step.op} is no elementwise op")
        operands: list[Value | Scalar | None] = []
        for operand in step.operands:
            if not isinstance(operand, Ref):
                operands.append(operand)
                continue
            known = types if operand.made else inputs
            if operand.number >= len(known):
                raise TypeCheckError(f"step {number} reads {operand}, which is not there yet or not at all")
            operands.append(Value(0, known[operand.number]))
            read.add(operand)
        try:
            made = infer(definition, tuple(operands), step.attrs)
        except TypeCheckError as error:
            raise TypeCheckError(f"step {number}: {error}") from None
        if len(made) != 1:
            raise TypeCheckError(f"step {number}: {step.op} has {len(made)} results")
        types += made
    wanted = [Ref(i) for i in range(len(inputs))] + [Ref(i, made=True) for i in range(len(types) - 1)]
    for ref in wanted:
        if ref not in read:
            raise TypeCheckError(f"no step reads {ref}")
    for number, type in enumerate(types):
        if type.shape != types[-1].shape:
            raise TypeCheckError(f"step {number} makes {type}, not of the shape of the result, {types[-1]}")
    return tuple(types)


def run_steps(text: str, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """The result of a program: the table's own callables, one after the other."""
    made: list[torch.Tensor] = []
    for run, operands, attrs in _calls(text):
        values = [
            (made if item.made else inputs)[item.number] if isinstance(item, Ref) else item
            for item in operands
        ]
        made.append(run(*values, **attrs))
    return made[-1]


@lru_cache(maxsize=256)  # by text: as keys of a cache, programs with 1, 1.0 and True in them are equal
def _calls(text: str) -> list[tuple[Callable[..., Any], tuple[StepOperand, ...], dict[str, Any]]]:
    calls: list[tuple[Callable[..., Any], tuple[StepOperand, ...], dict[str, Any]]] = []
    for step in parse_steps(text).steps:
        definition = stepwise(step.op)
        assert definition is not None
        attrs = {name: v.torch if isinstance(v, DType) else v for name, v in step.attrs}
        calls.append((definition.run, step.operands, attrs))
    return calls


# -- text ----------------------------------------------------------------------------------------------------

_STEP_KINDS = {
    Kind.TENSOR,
    Kind.OPT_TENSOR,
    Kind.NUMBER,
    Kind.OPT_NUMBER,
    Kind.INT,
    Kind.FLOAT,
    Kind.BOOL,
    Kind.STR,
    Kind.OPT_STR,
    Kind.SCALAR,
    Kind.OPT_SCALAR,
    Kind.DTYPE,
    Kind.OPT_DTYPE,
}
_WORDS = {Kind.STR, Kind.OPT_STR}
_DTYPES = {Kind.DTYPE, Kind.OPT_DTYPE}
_CALL = re.compile(r"([a-z][a-z0-9_]*)\(([^()]*)\)", re.ASCII)
_REF = re.compile(r"([xs])(0|[1-9][0-9]{0,3})", re.ASCII)
_INT = re.compile(r"-?[0-9]{1,19}", re.ASCII)
_FLOAT = re.compile(r"-?(?:[0-9]+\.[0-9]+(?:e[+-]?[0-9]+)?|[0-9]+e[+-]?[0-9]+|inf)", re.ASCII)
_WORD = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)


def _show(item: Attribute | StepOperand) -> str:
    if item is None or isinstance(item, bool):
        return str(item).lower()
    return repr(item) if isinstance(item, (int, float)) else str(item)


def _step(text: str) -> Step:
    matched = _CALL.fullmatch(text)
    if matched is None:
        raise TypeCheckError(f"a step is written op(operand, ..., attribute=value), got {text!r}")
    definition = stepwise(f"aten.{matched[1]}")
    if definition is None:
        raise TypeCheckError(f"aten.{matched[1]} is no elementwise op")
    operands: list[StepOperand] = []
    attrs: dict[str, Attribute] = {}
    known = {p.name: p for p in definition.attrs}
    for part in matched[2].split(", "):
        name, equals, value = part.partition("=")
        if not equals:
            operands.append(_operand(part))
        elif name in known:
            attrs[name] = _attribute(known[name], value)
        else:
            raise TypeCheckError(f"{definition.name} has no attribute {name!r}")
    stored = normalise(definition, attrs)
    return Step(definition.name, tuple(operands), stored)


def _operand(text: str) -> StepOperand:
    ref = _REF.fullmatch(text)
    return Ref(int(ref[2]), ref[1] == "s") if ref else _number(text)


def _number(text: str) -> Scalar | None:
    if text in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[text]
    if _INT.fullmatch(text) and -(2**63) <= int(text) < 2**63:
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    raise TypeCheckError(f"a step reads x0, x1, ..., s0, s1, ... and numbers, got {text!r}")


def _attribute(param: Param, text: str) -> Attribute:
    if param.kind.is_optional and text == "none":
        return None
    if param.kind in _DTYPES:
        try:
            return DType(text)
        except ValueError:
            raise TypeCheckError(f"{text!r} is no dtype") from None
    if param.kind in _WORDS:
        if not _WORD.fullmatch(text):
            raise TypeCheckError(f"{text!r} is no word of small letters")
        return text
    return _number(text)


def writable(item: Attribute | StepOperand) -> bool:
    """Whether the text has a way to write a number or an attribute."""
    if isinstance(item, int) and not isinstance(item, bool):
        return -(2**63) <= item < 2**63
    if isinstance(item, float):
        return not math.isnan(item)
    if isinstance(item, str):
        return _WORD.fullmatch(item) is not None
    return item is None or isinstance(item, (bool, DType))


__all__ = [
    "MAX_STEPS",
    "Ref",
    "Step",
    "StepOperand",
    "Steps",
    "parse_steps",
    "run_steps",
    "step_types",
    "stepwise",
    "writable",
]
