"""Text to syntax tree, through lark, and errors of every kind to SourceErrors.

What names mean is the affair of `planc.text.elaborate`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from importlib.resources import files
from typing import Any, cast

from lark import Lark, Token, Transformer
from lark.exceptions import UnexpectedInput

from planc.errors import ElaborationError, ParseError, SourceError, Span
from planc.ir.structure import LIST, TUPLE
from planc.text import syntax
from planc.text.complaints import explain, token_place
from planc.text.elaborate import Module, elaborate
from planc.text.gradients import Differentiate
from planc.text.syntax import Place, Problem, SyntaxProblem, deeper
from planc.text.words import LITERALS, RESERVED, unquote_name, unquote_string

MAX_TEXT = 8 * 2**20
"""The longest text read, in characters."""
MAX_INT = 2**64
"""Integer literals are smaller than this."""
MAX_DIGITS = 40
"""The longest number literal, in characters."""


def parse(text: str, file: str = "<text>", differentiate: Differentiate | None = None) -> Module:
    """The plans that ``text`` defines, checked op by op.

    Args:
        text: the source, at most `MAX_TEXT` characters.
        file: its name in errors and in the locations of nodes.
        differentiate: what ``grad`` means; without it, ``grad`` is an error.

    Raises:
        ParseError: the text is not in the language.
        ElaborationError: it is, but a name, op, type or attribute in it does not fit.
    """
    try:
        return elaborate(parse_syntax(text), text, file, differentiate)
    except Problem as problem:
        raise located(problem, text, file) from None


def located(problem: Problem, text: str, file: str) -> SourceError:
    """A problem as the error that users get."""
    kind = ParseError if isinstance(problem, SyntaxProblem) else ElaborationError
    span = Span(file, problem.place.line, problem.place.column, problem.place.end_column)
    return kind(problem.message, span, text, problem.hint)


def parse_syntax(text: str) -> tuple[syntax.PlanDef, ...]:
    """The syntax trees of the plans in ``text``.

    Raises:
        SyntaxProblem: the text is not in the language.
    """
    if len(text) > MAX_TEXT:
        raise SyntaxProblem(f"the text has {len(text)} characters, more than {MAX_TEXT}", Place(1, 1, 2))
    try:
        # The transformer is part of the parser: what comes back is not lark's tree but ours.
        return cast("tuple[syntax.PlanDef, ...]", cast(object, _grammar().parse(text)))
    except UnexpectedInput as error:
        raise explain(error, text) from None


@lru_cache(maxsize=1)
def _grammar() -> Lark:
    source = files("planc.text").joinpath("plan.lark").read_text(encoding="utf-8")
    return Lark(source, parser="lalr", lexer="contextual", maybe_placeholders=False, transformer=_Builder())


class _Builder(Transformer[Token, Any]):
    """Builds our syntax tree while lark parses: one method a rule, called with its children in order."""

    def start(self, children: list[Any]) -> tuple[syntax.PlanDef, ...]:
        return tuple(children)

    def ident(self, children: list[Any]) -> syntax.Ident:
        token: Token = children[0]
        quoted = token.type == "QUOTED"
        return syntax.Ident(token_place(token), unquote_name(token) if quoted else str(token), quoted)

    # -- literals and expressions

    def int_(self, children: list[Any]) -> syntax.Literal:
        return syntax.Literal(token_place(children[0]), _int(children[0]))

    def float_(self, children: list[Any]) -> syntax.Literal:
        token: Token = children[0]
        if len(token) > MAX_DIGITS:
            raise SyntaxProblem(
                f"a number of {len(token)} characters", token_place(token), "17 digits are always enough"
            )
        if float(token) == float("inf"):
            raise SyntaxProblem(
                f"{token} is too large for a number", token_place(token), "infinity is written inf"
            )
        return syntax.Literal(token_place(token), float(token))

    def string(self, children: list[Any]) -> syntax.Literal:
        return syntax.Literal(token_place(children[0]), unquote_string(children[0]))

    def name(self, children: list[Any]) -> syntax.Literal | syntax.Name:
        ident: syntax.Ident = children[0]
        if not ident.quoted and ident.text in LITERALS:
            return syntax.Literal(ident.at, LITERALS[ident.text])
        if not ident.quoted and ident.text in RESERVED and ident.text != "_":
            raise SyntaxProblem(f"expected an expression, got '{ident.text}'", ident.at)
        return syntax.Name(ident.at, ident.text)

    def group(self, children: list[Any]) -> syntax.Expr:
        # The brackets leave no node of their own, but they count: text bounds nesting as it is written.
        (expr,) = children
        return replace(expr, depth=deeper([expr], expr.at))

    def negative(self, children: list[Any]) -> syntax.Literal | syntax.Negative:
        minus, operand = children
        at = token_place(minus).to(operand.at)
        if isinstance(operand, syntax.Literal) and type(operand.value) in (int, float):
            return syntax.Literal(at, -cast(float, operand.value))
        return syntax.Negative(at, operand, deeper([operand], at))

    def chain(self, children: list[Any]) -> syntax.Chain:
        first, at = children[0], children[0].at.to(children[-1].at)
        rest = tuple((str(op), operand) for op, operand in zip(children[1::2], children[2::2], strict=True))
        return syntax.Chain(at, first, rest, deeper(children[::2], at))

    def list_(self, children: list[Any]) -> syntax.ListOf:
        opens, *items, closes = children
        at = token_place(opens).to(token_place(closes))
        return syntax.ListOf(at, tuple(items), deeper(items, at))

    def call(self, children: list[Any]) -> syntax.Call:
        callee, *given, close = children
        at = callee.at.to(token_place(close))
        arguments = tuple(item for item in given if not isinstance(item, tuple))
        keywords = tuple(item for item in given if isinstance(item, tuple))
        if arguments and keywords and any(isinstance(a, tuple) for a in given[: len(arguments)]):
            raise SyntaxProblem(
                "an argument without a name follows one with a name", at, "write named ones last"
            )
        depth = deeper([*arguments, *(value for _, value in keywords)], at)
        return syntax.Call(at, callee, arguments, keywords, depth)

    def callee(self, children: list[Any]) -> syntax.Ident:
        (name,) = children
        return name if isinstance(name, syntax.Ident) else syntax.Ident(token_place(name), str(name))

    def keyword(self, children: list[Any]) -> tuple[syntax.Ident, syntax.Expr]:
        name, value = children
        return name, value

    # -- structures

    def tuple_(self, children: list[Any]) -> syntax.TreeOf:
        return self._tree(children[0], TUPLE, (), children[1:])

    def dict_(self, children: list[Any]) -> syntax.TreeOf:
        entries: list[tuple[str, syntax.TreeExpr]] = children[1:]
        keys = tuple(key for key, _ in entries)
        if len(set(keys)) != len(keys):
            raise SyntaxProblem("a key is given twice", token_place(children[0]))
        return self._tree(children[0], "dict", keys, [item for _, item in entries])

    def tree_list(self, children: list[Any]) -> syntax.TreeOf:
        return self._tree(children[0], LIST, (), children[1:])

    def entry(self, children: list[Any]) -> tuple[str, syntax.TreeExpr]:
        return unquote_string(children[0]), children[1]

    def _tree(self, opens: Token, kind: str, keys: tuple[str, ...], items: list[Any]) -> syntax.TreeOf:
        at = token_place(opens)
        return syntax.TreeOf(at, kind, keys, tuple(items), deeper(items, at))

    # -- types and ports

    def type(self, children: list[Any]) -> syntax.TypeExpr:
        name: Token = children[0]
        at = token_place(name)
        dims = tuple(children[1:-1])
        return syntax.TypeExpr(at.to(token_place(children[-1])), syntax.Ident(at, str(name)), dims)

    def port(self, children: list[Any]) -> syntax.Port:
        idents = [child for child in children if isinstance(child, syntax.Ident)]
        types = [child for child in children if isinstance(child, syntax.TypeExpr)]
        paths = [unquote_string(child) for child in children if isinstance(child, Token)]
        role = idents[0] if len(idents) == 2 else None
        return syntax.Port(
            idents[-1].at, role, _new(idents[-1]), types[0] if types else None, paths[0] if paths else None
        )

    result_port = port

    def inputs(self, children: list[Any]) -> tuple[syntax.Port, ...]:
        return tuple(children)

    def results_inferred(self, _children: list[Any]) -> None:
        return None

    def results_listed(self, children: list[Any]) -> tuple[syntax.Port, ...]:
        return tuple(
            syntax.Port(child.at, None, None, child, None) if isinstance(child, syntax.TypeExpr) else child
            for child in children
        )

    def range(self, children: list[Any]) -> syntax.Range:
        return syntax.Range(_new(children[0]), *children[1:])

    def bound(self, children: list[Any]) -> int:
        return _int(children[-1]) * (-1 if len(children) == 2 else 1)

    def relation(self, children: list[Any]) -> syntax.Relation:
        left, _, right = children
        return syntax.Relation(left.at.to(right.at), left, right)

    def where(self, children: list[Any]) -> list[syntax.Range | syntax.Relation]:
        return children

    # -- items of a plan

    def takes(self, children: list[Any]) -> tuple[str, syntax.Arrangement]:
        return "takes", syntax.Arrangement(token_place(children[0]), children[1])

    def gives(self, children: list[Any]) -> tuple[str, syntax.Arrangement]:
        return "gives", syntax.Arrangement(token_place(children[0]), children[1])

    def const(self, children: list[Any]) -> syntax.ConstDef:
        name, kind, data = children
        if isinstance(data, Token):
            return syntax.ConstDef(_new(name), kind, None, data.removeprefix("sha256:"))
        return syntax.ConstDef(_new(name), kind, data, None)

    def target(self, children: list[Any]) -> syntax.Target:
        name: syntax.Ident = children[0]
        plain = name.text == "_" and not name.quoted
        return syntax.Target(name if plain else _new(name), children[1] if len(children) == 2 else None)

    def assign(self, children: list[Any]) -> syntax.Assign:
        *targets, value = children
        return syntax.Assign(targets[0].name.at, tuple(targets), value)

    def drop(self, children: list[Any]) -> syntax.Assign:
        (call,) = children
        return syntax.Assign(call.at, (), call)

    def loop(self, children: list[Any]) -> syntax.Loop:
        opens: Token = children[0]
        targets = tuple(child for child in children if isinstance(child, syntax.Target))
        source, *items = children[1 + len(targets) :]
        for item in items:
            if isinstance(item, syntax.Return):
                raise SyntaxProblem("'return' in a loop", item.at, "a plan returns once, after its loops")
            if not isinstance(item, syntax.Statement):
                at = item[1].at if isinstance(item, tuple) else item.name.at
                raise SyntaxProblem(
                    "a loop holds statements only", at, "plans and constants come before loops"
                )
        at = token_place(opens).to(source.at)
        depth = deeper([item for item in items if isinstance(item, syntax.Loop)], at)
        return syntax.Loop(at, targets, source, tuple(items), depth)

    def collect(self, children: list[Any]) -> syntax.Collect:
        word, target, *value = children
        return syntax.Collect(token_place(word).to(target.name.at), target, value[0] if value else None)

    def return_(self, children: list[Any]) -> syntax.Return:
        return syntax.Return(token_place(children[0]), tuple(children[1:]))

    def plan(self, children: list[Any]) -> syntax.PlanDef:
        name, inputs, results, conditions, *items = children
        trees: dict[str, syntax.Arrangement] = {}
        returned: syntax.Return | None = None
        for item in items:
            if returned is not None:
                at = _place_of(item)
                raise SyntaxProblem(f"plan {name.text!r} goes on after its return", at, "return comes last")
            if isinstance(item, syntax.Return):
                returned = item
            elif isinstance(item, tuple):
                word, tree = cast("tuple[str, syntax.Arrangement]", item)
                if word in trees:
                    raise SyntaxProblem(f"plan {name.text!r} has two '{word}'", tree.at)
                trees[word] = tree
        plans = tuple(item for item in items if isinstance(item, syntax.PlanDef))
        statements = tuple(item for item in items if isinstance(item, syntax.Statement))
        return syntax.PlanDef(
            _new(name),
            inputs,
            results,
            tuple(item for item in conditions if isinstance(item, syntax.Range)),
            tuple(item for item in conditions if isinstance(item, syntax.Relation)),
            plans,
            tuple(item for item in items if isinstance(item, syntax.ConstDef)),
            statements,
            trees.get("takes"),
            trees.get("gives"),
            returned,
            deeper([*plans, *(s for s in statements if isinstance(s, syntax.Loop))], name.at),
        )


def _place_of(item: Any) -> Place:
    """Where an item of a plan is, a word and its tree among them."""
    thing = item[1] if isinstance(item, tuple) else item
    return thing.name.at if isinstance(thing, (syntax.PlanDef, syntax.ConstDef)) else thing.at


def _new(name: syntax.Ident) -> syntax.Ident:
    """A name where it is defined: not a reserved word."""
    if not name.quoted and name.text in RESERVED:
        hint = f"choose another name, or write `{name.text}` in backticks"
        raise SyntaxProblem(f"'{name.text}' is a word of the language", name.at, hint)
    return name


def _int(token: Token) -> int:
    if len(token) > MAX_DIGITS or int(token) >= MAX_INT:
        raise SyntaxProblem("an integer of more than 64 bits", token_place(token), "integers are below 2**64")
    return int(token)
