"""A plan as SVG that stands alone: inputs by role at the left, what is computed, outputs at the right.

Drawn from the graph alone. A file of its own or inside a page: it carries its style with it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from zlib import crc32

from planc.draw.flow import flow_of
from planc.draw.layout import Body
from planc.draw.marks import arrow, box, cut, label, safe
from planc.draw.style import drawing_style
from planc.errors import InputError
from planc.ir import Graph, Input, Output, Role
from planc.ir.facts import relations

_CARD, _GAP = 244, 28
_LISTED = 12
"""Ports of one role beyond these are counted: a page lists all in its table."""
_ROW = 34

INPUTS = {
    Role.ARGUMENT: "arguments",
    Role.PARAMETER: "parameters",
    Role.BUFFER: "buffers",
    Role.OPTIMIZER: "optimizer state",
    Role.KEY: "random key",
}
OUTPUTS = {
    Role.ARGUMENT: "results",
    Role.PARAMETER: "new parameters",
    Role.BUFFER: "new buffers",
    Role.OPTIMIZER: "new optimizer state",
    Role.KEY: "new random key",
}


@dataclass(frozen=True, slots=True)
class Captions:
    """What the cards of inputs and outputs are called, by role, and what to call single results, by path."""

    inputs: Mapping[Role, str] = field(default_factory=lambda: INPUTS)
    outputs: Mapping[Role, str] = field(default_factory=lambda: OUTPUTS)
    results: Mapping[str, str] = field(default_factory=dict[str, str])


def svg(graph: Graph, private: Collection[str] = (), captions: Captions | None = None) -> str:
    """The drawing of any plan.

    Args:
        graph: the plan.
        private: paths of inputs that are private: they are marked, and so is every output that is computed
            from one of them.
        captions: other words for inputs and outputs.

    Raises:
        InputError: ``private`` has a path that is no input's.
    """
    tainted = private_outputs(graph, private)
    captions = captions or Captions()
    body = Body(graph)
    outputs_x = 2 * _GAP + _CARD + body.width
    secret = {port.value.index for port in graph.inputs if port.path in private}
    left, left_end = _cards(graph.inputs, captions.inputs, 0, secret, "private", {})
    right, right_end = _cards(
        graph.outputs, captions.outputs, outputs_x, tainted, "from private data", captions.results
    )
    body.place(_CARD + _GAP, 34)
    bottom = 34 + body.height
    width, height = outputs_x + _CARD + 16, max(bottom, left_end, right_end) + 12
    arrows = [arrow(_CARD + 2, 44, _CARD + _GAP - 3, 44)] if left else []
    arrows += [arrow(outputs_x - _GAP + 2, 44, outputs_x - 3, 44)] if right else []
    related = ", ".join(f"{left} == {right}" for left, right in relations(graph))
    name = cut(f"plan {cut(graph.name, 60)}{' where ' if related else ''}{related}", 90)
    inside = [
        *left,
        *right,
        *arrows,
        box(_CARD + _GAP, 4, body.width, bottom - 4, "frame", radius=10),
        label(_CARD + _GAP + 14, 24, name, "title"),
        *body.draw(),
    ]
    drawn = "\n".join(inside)
    # Several drawings in one page must not share a marker: it vanishes with the one that is hidden.
    tip = f"tip{crc32(drawn.encode()):08x}"
    # In a page it shrinks to fit as far as it can be read; what is no browser goes by its attributes.
    fit = f"width: 100%; height: auto; max-width: {width:.0f}px; min-width: {width * 0.75:.0f}px"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plan" viewBox="-8 -4 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" style="{fit}" role="img" '
        f'aria-label="drawing of {safe(name)}">\n'
        f"<style>\n{drawing_style()}</style>\n"
        f'<defs><marker id="{tip}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path class="tip" d="M0,0L8,4L0,8z"/></marker></defs>\n'
    )
    return f"{head}{drawn.replace('url(#TIP)', f'url(#{tip})')}\n</svg>\n"


def private_outputs(graph: Graph, private: Collection[str]) -> set[int]:
    """The values, by number, of outputs that anything private flows into.

    Raises:
        InputError: ``private`` has a path that is no input's.
    """
    have = [port.path for port in graph.inputs]
    unknown = [path for path in private if path not in have]
    if unknown:
        shown = ", ".join(have[:12]) + (f" and {len(have) - 12} more" if len(have) > 12 else "")
        raise InputError(f"plan {graph.name!r} has no input {unknown[0]!r}; it has {shown or 'none'}")
    sources = zip(graph.outputs, flow_of(graph), strict=True)
    return {out.value.index for out, found in sources if any(have[i] in private for i in found)}


def _cards(
    ports: Sequence[Input] | Sequence[Output],
    titles: Mapping[Role, str],
    x: float,
    secret: set[int],
    mark: str,
    names: Mapping[str, str],
) -> tuple[list[str], float]:
    """One card a role, below each other, and where the last ends."""
    out: list[str] = []
    y = 4.0
    for role, title in titles.items():
        mine = [port for port in ports if port.role is role]
        if not mine:
            continue
        whole = len(mine) > 1 and all(port.value.index in secret for port in mine)
        # What is private among others is never only counted.
        kept = set[int]() if whole else secret
        shown = [
            port
            for i, port in enumerate(mine)
            if len(mine) <= _LISTED or i < _LISTED - 1 or port.value.index in kept
        ]
        more = len(mine) - len(shown)
        first = y + 40 + (15 if whole else 0)
        height = first - y - 8 + _ROW * len(shown) + (20 if more else 0)
        out.append(box(x + 1, y, _CARD - 2, height, f"card {role.value}", radius=8))
        out.append(label(x + 12, y + 20, title if not more else f"{title} ({len(mine)})", "cardtitle"))
        if whole:
            out.append(box(x + 1, y, _CARD - 2, height, "secret", radius=8))
            out.append(label(x + 12, y + 36, f"all {mark}", "private"))
        for i, port in enumerate(shown):
            top = first + _ROW * i
            path = names.get(port.path, port.path) if role is Role.ARGUMENT else port.path
            marked = port.value.index in kept
            most = 32 - (len(mark) if marked else 0)
            out.append(label(x + 12, top, cut(path, 32), "path"))
            out.append(label(x + 12, top + 14, cut(str(port.value.type), most), "type"))
            if marked:
                out.append(box(x + 5, top - 13, _CARD - 10, _ROW - 2, "secret"))
                out.append(label(x + _CARD - 12, top + 14, mark, "private", "end"))
        if more:
            out.append(label(x + 12, y + height - 10, f"and {more} more", "note"))
        y += height + 12
    return out, y


__all__ = ["INPUTS", "OUTPUTS", "Captions", "private_outputs", "svg"]
