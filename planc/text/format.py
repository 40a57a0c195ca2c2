"""The canonical layout of a text in the language (`planc fmt`): tokens stay, the space between them moves.

So sugar stays sugar and no comment is lost. The text of a graph is the affair of `planc.text.printer`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from planc.text.parser import located, parse_syntax
from planc.text.syntax import Loop, Place, PlanDef, Problem, Statement
from planc.text.tokens import CLOSES, OPENS, Token, scan

WIDTH = 100
"""Headers longer than this are broken, one port a line, as `planc.text.show` breaks them."""

_AS_WRITTEN = {"*", "/", "//", "%", "**"}  # dims are written b*6, values mostly a * b
_WORDS = {"plan", "const", "return", "takes", "gives", "where", "for", "in", "collect"}


def format(text: str, file: str = "<text>") -> str:
    """``text`` in canonical layout. Doing it twice changes nothing; a printed plan is left as it is.

    One item a line, two spaces a level, one space between words, at most one empty line between items. Line
    breaks within a statement stay; a header is one line, or one port a line where that would be long.

    Args:
        text: the source, of any number of plans; their ops and types are not checked.
        file: its name in errors.

    Raises:
        ParseError: the text is not in the language.
    """
    try:
        plans = parse_syntax(text)
    except Problem as problem:
        raise located(problem, text, file) from None
    tokens = _marked(scan(text), {(p.line, p.column) for plan in plans for p in _starts(plan)})
    lines = list(_items(tokens))
    return "\n".join(lines) + "\n" if lines else ""


def _starts(plan: PlanDef) -> Iterator[Place]:
    """Where the items of a plan start; for plans and constants, the name that follows their word."""
    yield plan.name.at
    for inner in plan.plans:
        yield from _starts(inner)
    yield from (const.name.at for const in plan.consts)
    yield from _statement_starts(plan.statements)
    yield from (item.at for item in (plan.takes, plan.gives, plan.returned) if item is not None)


def _statement_starts(statements: Sequence[Statement]) -> Iterator[Place]:
    for statement in statements:
        yield statement.at
        if isinstance(statement, Loop):
            yield from _statement_starts(statement.statements)


def _marked(tokens: list[Token], places: set[tuple[int, int]]) -> list[Token]:
    """The tokens, with those that start an item marked."""
    out = list(tokens)
    word = 0  # the last token that is no comment
    for i, token in enumerate(tokens):
        if token.at in places:
            named = tokens[word].text in ("plan", "const")
            first = word if named else i
            out[first] = replace(out[first], starts=True)
        word = word if token.is_comment else i
    return out


def _items(tokens: Sequence[Token]) -> Iterator[str]:
    """The lines of a text, item by item."""
    depth, i, opened = 0, 0, True
    while i < len(tokens):
        first, closes = tokens[i], tokens[i].text == "}"
        depth -= closes
        end = i + 1 if first.is_comment or closes else _end(tokens, i)
        item, i = tokens[i:end], end
        if first.breaks > 1 and not opened and not closes:
            yield ""
        indent = "  " * depth
        lines = _header(item, indent) if first.text == "plan" else _statement(item, indent)
        if i < len(tokens) and tokens[i].is_comment and not tokens[i].breaks:
            lines[-1] += f"  {tokens[i].text}"
            i += 1
        yield from lines
        opened = _opens_block(first)
        depth += _opens_block(first)


def _end(tokens: Sequence[Token], start: int) -> int:
    """Where the item that begins at ``start`` ends: a header after its brace, all others before the next."""
    opens, depth, end = _opens_block(tokens[start]), 0, start + 1
    while end < len(tokens):
        token = tokens[end]
        if opens and depth == 0 and token.text == "{":
            return end + 1
        if depth == 0 and (token.starts or token.text == "}"):
            break
        depth += (token.text in OPENS) - (token.text in CLOSES)
        end += 1
    # Comments between this item and the next belong to neither; `_items` places them.
    while tokens[end - 1].is_comment:
        end -= 1
    return end


def _header(tokens: Sequence[Token], indent: str) -> list[str]:
    if any(token.is_comment for token in tokens):
        return _statement(tokens, indent)
    inputs_end = _matching(tokens, 2)
    inputs = _ports(tokens[3:inputs_end])
    rest = tokens[inputs_end + 1 :]
    where_at = next((i for i, t in enumerate(rest) if _is_word(t) and t.text == "where"), len(rest) - 1)
    results, where = rest[:where_at], rest[where_at:]
    listed = len(results) > 1 and results[1].text == "("
    outputs = _ports(results[2:-1]) if listed else [_join(results[1:])]
    arrow = f" -> ({', '.join(outputs)})" if listed else f" {_join(results)}" if results else ""
    line = f"{indent}plan {tokens[1].text}({', '.join(inputs)}){arrow}"
    tail = _join(where)
    if len(line) <= WIDTH:
        whole = f"{line} {tail}"
        return [whole] if len(whole) <= WIDTH or len(where) == 1 else [line, f"{indent}    {tail}"]
    broken = [f"{indent}plan {tokens[1].text}(", *(f"{indent}    {port}," for port in inputs)]
    if not listed:
        return [*broken, f"{indent}){arrow} {tail}"]
    return [*broken, f"{indent}) -> (", *(f"{indent}    {port}," for port in outputs), f"{indent}) {tail}"]


def _is_word(token: Token) -> bool:
    return token.kind == "name" and token.text in _WORDS


def _opens_block(token: Token) -> bool:
    """Whether it begins a header, which a body in braces follows."""
    return token.starts and token.text in ("plan", "for")


def _matching(tokens: Sequence[Token], opening: int) -> int:
    depth = 0
    for i in range(opening, len(tokens)):
        depth += (tokens[i].text in OPENS) - (tokens[i].text in CLOSES)
        if depth == 0:
            return i
    raise AssertionError("brackets match in what the parser has read")


def _ports(tokens: Sequence[Token]) -> list[str]:
    """Ports as text, from what stands between their brackets."""
    groups: list[list[Token]] = [[]]
    depth = 0
    for token in tokens:
        depth += (token.text in OPENS) - (token.text in CLOSES)
        if token.text == "," and depth == 0:
            groups.append([])
        else:
            groups[-1].append(token)
    return [_join(group) for group in groups if group]


def _join(tokens: Sequence[Token]) -> str:
    """Tokens on one line."""
    return _statement([replace(token, breaks=0) for token in tokens], "")[0] if tokens else ""


def _statement(tokens: Sequence[Token], indent: str) -> list[str]:
    """Tokens in the lines that they were written in, each a step deeper than where its bracket opened."""
    lines, level = [indent + tokens[0].text], 0
    opened: list[int] = []  # for each bracket that is open, the level of its line
    for i in range(1, len(tokens)):
        token = tokens[i]
        closes = opened.pop() if token.text in CLOSES and opened else None
        if token.breaks:
            level = closes if closes is not None else opened[-1] + 1 if opened else 1
            lines.append(indent + "    " * level + token.text)
        else:
            gap = "  " if token.is_comment else " " if _spaced(tokens, i, len(opened)) else ""
            lines[-1] += gap + token.text
        if token.text in OPENS:
            opened.append(level)
    return lines


def _spaced(tokens: Sequence[Token], i: int, depth: int) -> bool:
    """Whether there is a space between token ``i - 1`` and token ``i``, within ``depth`` brackets."""
    before, token = tokens[i - 1], tokens[i]
    if ".." in (before.text, token.text) or token.text in {",", ":", *CLOSES}:
        return False
    if before.text in OPENS or (i > 1 and _is_sign(tokens, i - 1)):
        return False
    if "=" in (before.text, token.text) and depth:
        return False
    if token.text in _AS_WRITTEN or before.text in _AS_WRITTEN:
        return before.loose if before.text in _AS_WRITTEN else token.loose
    if token.text in ("(", "["):
        return before.kind not in ("name", "quoted") or before.text in ("return", "takes", "gives")
    return True


def _is_sign(tokens: Sequence[Token], i: int) -> bool:
    """Whether the token is a minus before an operand, not between two."""
    before = tokens[i - 1]
    operand = before.kind in ("name", "quoted", "number", "string") and not _is_word(before)
    return tokens[i].text == "-" and not operand and before.text not in (")", "]")
