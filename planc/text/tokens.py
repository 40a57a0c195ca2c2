"""A text's tokens and comments with their places, without a parse: for laying out and for explaining errors.

The grammar's own lexer is lark's; this one reads the same tokens and needs no grammar to go on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

# Strings that do not end are tokens too: looking for the end again from each quote would take quadratic time.
_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+) | (?P<comment>\#[^\n]*)
      | (?P<quoted>`(?:[^`\\\n]|\\.)*`?) | (?P<string>"(?:[^"\\\n]|\\.)*"?)
      | (?P<number>[0-9]+\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|[0-9]+)
      | (?P<digest>sha256:[0-9a-f]{64}) | (?P<name>[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*)
      | (?P<sign>->|\.\.|\*\*|//|==|!=|<=|>=|[-+*/%@<>=:,(){}\[\]])""",
    re.VERBOSE,
)
OPENS = {"(": ")", "[": "]", "{": "}"}
CLOSES = {close: opening for opening, close in OPENS.items()}


@dataclass(frozen=True, slots=True)
class Token:
    """One token or comment: its place, the line ends before it, whether there is space around it."""

    kind: str
    text: str
    at: tuple[int, int]
    breaks: int
    loose: bool
    starts: bool = False
    """Whether an item of a plan starts here; a reader of tokens sets it."""

    @property
    def is_comment(self) -> bool:
        return self.kind == "comment"


def scan(text: str, end: int | None = None) -> list[Token]:
    """The tokens and comments of ``text``, up to the character ``end``; what is no token is left out."""
    found: list[Token] = []
    line, line_start, breaks, space = 1, 0, 0, True
    for match in _TOKEN.finditer(text, 0, len(text) if end is None else end):
        kind = match.lastgroup or ""
        if kind == "space":
            ends = match[0].count("\n")
            breaks, space, line = breaks + ends, True, line + ends
            line_start = match.start() + match[0].rfind("\n") + 1 if ends else line_start
            if found:
                found[-1] = replace(found[-1], loose=True)
            continue
        at = (line, match.start() - line_start + 1)
        found.append(Token(kind, match[0].rstrip() if kind == "comment" else match[0], at, breaks, space))
        breaks, space = 0, False
    return found
