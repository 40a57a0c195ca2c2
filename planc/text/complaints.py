"""What is wrong with a text that is not in the language: lark's errors in words that people know.

Only texts that failed to parse come here; what does not fit in one that parses is told where it is found.
"""

from __future__ import annotations

from lark import Token as LarkToken
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from planc.text.sugar import resolve
from planc.text.syntax import Place, SyntaxProblem
from planc.text.tokens import CLOSES, OPENS, Token, scan
from planc.text.words import OPERATORS, RESERVED, describe, describe_one

_PLAN = "a plan is written: plan f(x: f32[b]) { return x }"
_STATEMENT = "a statement is 'name = expression'; the last one is 'return ...'"
_SIDES = "both sides are computed: where(condition, a, b)"
_FOREIGN = {
    "if": _SIDES,
    "else": _SIDES,
    "elif": _SIDES,
    "while": "the number of trips is known before a plan runs: for i in range(10) { ... }",
    "not": "write logical_not(x)",
    "and": "write logical_and(a, b)",
    "or": "write logical_or(a, b)",
    "let": _STATEMENT,
    "var": _STATEMENT,
    "val": _STATEMENT,
    "yield": "in a loop, write: collect name",
    "def": _PLAN,
    "fn": _PLAN,
    "func": _PLAN,
    "function": _PLAN,
    "import": "nothing is imported: the ops of the table can be called by their names",
    "from": "nothing is imported: the ops of the table can be called by their names",
    "lambda": "plans within a plan have names: plan g(x: f32[b]) { return x }",
}
"""Words of other languages, and what is written here."""

_CHARACTERS = {
    '"': 'strings end on their line and escape as JSON does: \\" \\\\ \\n \\u00e9',
    "'": "strings are written in double quotes",
    "`": "names in backticks end on their line and escape as JSON does",
    ".": "numbers have digits on both sides of the point: 1.0, 0.5",
    ";": "statements need no ';'",
    "&": "write logical_and(a, b)",
    "|": "write logical_or(a, b)",
    "!": "write logical_not(x), and a != b",
    "~": "write logical_not(x)",
    "?": "a dim that varies has a name: f32[b, 784]",
}


def explain(error: UnexpectedInput, text: str) -> SyntaxProblem:
    """Lark's error as a problem with its place and, where there is an idea what was meant, a hint."""
    if isinstance(error, UnexpectedCharacters):
        return _character(error, text)
    if not isinstance(error, UnexpectedToken):
        raise error
    token = error.token
    ended = token.type == "$END"
    before = [t for t in scan(text, len(text) if ended else token.start_pos) if not t.is_comment]
    wrong_bracket = _brackets(token, before)
    if wrong_bracket is not None:  # what the parser would accept takes long to find in a deep text
        return wrong_bracket
    expected = set(error.accepts or error.expected)
    return _known(token, before, expected) or _plain(token, before, expected, text)


def token_place(token: LarkToken) -> Place:
    """The place of a token, or of its first character where it goes over a line's end."""
    line, column = token.line or 1, token.column or 1
    return Place(line, column, column + max(1, len(token)) if token.end_line in (None, line) else column + 1)


def _character(error: UnexpectedCharacters, text: str) -> SyntaxProblem:
    place = Place(error.line, error.column, error.column + 1)
    position = error.pos_in_stream or 0
    character = text[position]
    hint = _CHARACTERS.get(character, "")
    if not character.isascii():
        hint = "names are ASCII letters, digits and _; in strings, other characters are \\u escapes"
    elif character == "." and not text[:position][-1:].isdigit():
        hint = "there are no attributes and modules: write t(x) for x.T, f32[b] for torch.float32"
    return SyntaxProblem(f"unexpected character {character!r}", place, hint)


def _brackets(token: LarkToken, before: list[Token]) -> SyntaxProblem | None:
    """A bracket that is not closed, or a closing one without its opening."""
    opened: list[Token] = []
    for t in before:
        if t.text in OPENS:
            opened.append(t)
        elif t.text in CLOSES and opened:
            opened.pop()
    innermost = opened[-1] if opened else None
    if token.type == "$END":
        return None if innermost is None else _unclosed(innermost, "the text ends")
    if token in CLOSES:
        if innermost is None or (innermost.text == "{" and token != "}"):
            return SyntaxProblem(f"'{token}' closes nothing", token_place(token), "there is no open bracket")
        if OPENS[innermost.text] != token and token != "}":
            line, column = innermost.at
            hint = f"'{innermost.text}' is open since line {line}, column {column}"
            return SyntaxProblem(f"'{token}' cannot close '{innermost.text}'", token_place(token), hint)
    ends = token == "}" or (str(token) in RESERVED and token != "_")
    if innermost is not None and innermost.text != "{" and ends:
        return _unclosed(innermost, f"'{token}' follows in line {token.line}")
    return None


def _unclosed(bracket: Token, until: str) -> SyntaxProblem:
    hint = f"{until} before its '{OPENS[bracket.text]}'"
    return SyntaxProblem(f"'{bracket.text}' is never closed", _place_of(bracket), hint)


def _known(token: LarkToken, before: list[Token], expected: set[str]) -> SyntaxProblem | None:
    """Mistakes that are better told from the token before."""
    last = before[-1] if before else None
    if str(token) in _FOREIGN and not {"EQUAL", "COLON"} & expected:
        return SyntaxProblem(f"'{token}' is not of this language", token_place(token), _FOREIGN[str(token)])
    if last is None or last.kind != "name":
        return None
    if "." in last.text and expected == {"LPAR"}:
        hint = "there are no attributes: write t(x) for x.T, and relu(x) for x.relu()"
        return SyntaxProblem(f"'{last.text}' is no value", _place_of(last), hint)
    if {"EQUAL", "COLON", "LPAR"} <= expected:  # the last token began a statement
        if last.text in _FOREIGN:
            hint = _FOREIGN[last.text]
            return SyntaxProblem(f"'{last.text}' is not of this language", _place_of(last), hint)
        return _statement(token, before)
    return None


def _statement(token: LarkToken, before: list[Token]) -> SyntaxProblem:
    """A name began a statement that does not go on: perhaps it was meant for the statement before."""
    last = before[-1]
    previous = before[-2] if len(before) > 1 else None
    if previous is not None and previous.text not in OPENS and not last.breaks:
        if previous.text in _FOREIGN:
            place = _place_of(previous)
            return SyntaxProblem(f"'{previous.text}' is not of this language", place, _FOREIGN[previous.text])
        called = previous.kind == "name" and resolve(previous.text) is not None
        hint = f"write {previous.text}({last.text})" if called else ""
        message = f"expected an operator, ',' or a new line, got '{last.text}'"
        return SyntaxProblem(message, _place_of(last), hint or _STATEMENT)
    hint = _STATEMENT
    if token.type in OPERATORS:
        hint = f"a name means one value: write other = {last.text} {token} ..."
    return SyntaxProblem(f"expected '=' after '{last.text}', got '{_short(token)}'", token_place(token), hint)


def _plain(token: LarkToken, before: list[Token], expected: set[str], text: str) -> SyntaxProblem:
    """What could stand here, and what does."""
    words = describe(expected)
    if token.type == "$END":
        lines = text.split("\n")
        while len(lines) > 1 and not lines[-1].strip():
            lines.pop()
        place = Place(len(lines), len(lines[-1]) + 1, len(lines[-1]) + 2)
        return SyntaxProblem(f"expected {words}, got the end of the text", place)
    place = token_place(token)
    return SyntaxProblem(f"expected {words}, got '{_short(token)}'", place, _hint(token, before, expected))


def _hint(token: LarkToken, before: list[Token], expected: set[str]) -> str:
    last = before[-1].text if before else ""
    if expected <= {"PLAN", "$END"}:
        return _PLAN
    if token == "[" and expected & OPERATORS:
        return "there is no indexing: write select(x, dim=0, index=0), or slice(x, dim=0, start=0, end=4)"
    if token == "," and "RPAR" in expected and len(before) > 2 and before[-3].text in ("return", "="):
        return "several values are listed without brackets: return a, b"
    if {"IN", "EQ"} <= expected and token == "=":
        return f"equality of dims is written '==': where {last} == m"
    if {"IN", "EQ"} <= expected and token.type in OPERATORS:
        return f"dims have ranges, where {last} in 1..1024, and are related by '==', where {last} == m"
    if expected == {"INT", "MINUS"} or expected == {"INT"}:
        return "a range has two ends, which are numbers: where b in 1..1024"
    if "IN" in expected or "_DOTS" in expected:
        return f"the range of a dim is written: where {last if 'IN' in expected else 'b'} in 1..1024"
    if token in ("==", "=") and expected == {"COMMA", "LBRACE"}:
        return "a relation has two sides; several are listed: where n == m, m == k"
    if token.type in OPERATORS and not expected & {"LT", "EQ"}:
        return "a comparison has two sides: write logical_and(a < b, b < c)"
    if expected == {"LPAR"} and token == "{":
        return "a loop goes over batches(x, y, size=64) or range(10)"
    if expected == {"LSQB"}:
        return "a type has its dims in square brackets: f32[b, 784], or f32[] for a single number"
    if expected == {"COLON", "NAME", "QUOTED"}:
        return f"every input has a type: {last}: f32[b, 784]"
    if token == ":" and "LBRACE" in expected:
        return "what a plan does stands in braces: plan f(x: f32[b]) { return x }"
    if token == "=":
        return "comparison is '==', and a type stands between ':' and '=': a: f32[b] = x"
    return ""


def _short(token: LarkToken) -> str:
    return str(token) if len(token) <= 40 else describe_one(token.type)


def _place_of(token: Token) -> Place:
    line, column = token.at
    return Place(line, column, column + len(token.text))
