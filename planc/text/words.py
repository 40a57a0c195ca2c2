"""Words of the language: which are reserved, how names and strings are quoted, what errors call tokens."""

from __future__ import annotations

import json
import re

LITERALS: dict[str, float | bool | None] = {
    "true": True,
    "True": True,
    "false": False,
    "False": False,
    "none": None,
    "None": None,
    "inf": float("inf"),
    "nan": float("nan"),
}
"""Identifiers that stand for a value. Python's spellings are read too; ours are printed."""

RESERVED = frozenset(
    {*LITERALS, "plan", "const", "return", "takes", "gives", "where", "for", "in", "collect", "_"}
)
"""Identifiers that name nothing unless written in backticks."""

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def quote_name(name: str) -> str:
    """``name`` as the language writes it: in backticks where it is reserved or no ASCII identifier."""
    if _PLAIN.fullmatch(name) and name not in RESERVED:
        return name
    # Escapes keep backticks and double quotes out, so that the token ends where it seems to.
    return "`" + json.dumps(name)[1:-1].replace("`", "\\u0060").replace('\\"', "\\u0022") + "`"


def unquote_name(token: str) -> str:
    """The name that a token in backticks means."""
    return json.loads(f'"{token[1:-1]}"')


def quote_string(text: str) -> str:
    """``text`` in double quotes, all but ASCII escaped: nobody approves a plan that looks like another."""
    return json.dumps(text)


def unquote_string(token: str) -> str:
    """The string that a token in double quotes means."""
    return json.loads(token)


def show_number(value: float | bool | None) -> str:
    """A scalar as the language writes it, its type kept: ``1``, ``1.0``, ``true``, ``-inf``, ``none``."""
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else repr(value)


_NAMES = {
    "NAME": "a name",
    "QUOTED": "a name",
    "DOTTED": "an op",
    "INT": "a number",
    "FLOAT": "a number",
    "STRING": "a string",
    "DIGEST": "a digest",
    "LPAR": "'('",
    "RPAR": "')'",
    "LSQB": "'['",
    "RSQB": "']'",
    "LBRACE": "'{'",
    "RBRACE": "'}'",
    "_RBRACE": "'}'",
    "COMMA": "','",
    "COLON": "':'",
    "EQUAL": "'='",
    "_ARROW": "'->'",
    "_DOTS": "'..'",
    "MINUS": "'-'",
    "$END": "the end of the text",
}
_EXPRESSION = {"NAME", "QUOTED", "DOTTED", "INT", "FLOAT", "STRING", "LSQB", "MINUS"}
_TREE = {"NAME", "QUOTED", "INT", "FLOAT", "STRING", "LSQB", "LBRACE", "MINUS"}
_STATEMENT = {"NAME", "QUOTED", "DOTTED", "PLAN", "CONST", "RETURN", "TAKES", "GIVES", "FOR", "COLLECT"}
OPERATORS = {
    "PLUS",
    "MINUS",
    "STAR",
    "SLASH",
    "DSLASH",
    "PERCENT",
    "AT",
    "POW",
    "EQ",
    "NE",
    "LT",
    "LE",
    "GT",
    "GE",
}


def describe(expected: set[str]) -> str:
    """What the terminals in ``expected`` are, in words: ``a name, ':' or '='``."""
    rest = set(expected)
    words: list[str] = []
    if rest >= _EXPRESSION:
        rest -= _EXPRESSION | {"LPAR"}
        words.append("an expression")
    elif rest >= _TREE:
        rest -= _TREE | {"LPAR"}
        words.append("a name, a value or a container")
    if {"PLUS", "MINUS"} <= rest:
        # What precedes is a whole expression; that it could be a callee or a keyword too is no help.
        rest -= OPERATORS | {"LPAR", "EQUAL"}
        words.append("an operator")
    if rest >= _STATEMENT:
        rest -= _STATEMENT
        words.append("a statement")
    for terminal in sorted(rest):
        word = describe_one(terminal)
        if word not in words:
            words.append(word)
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def describe_one(terminal: str) -> str:
    """What one terminal of the grammar is called in errors."""
    return _NAMES.get(terminal) or f"'{terminal.lower()}'"
