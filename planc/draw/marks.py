"""The shapes that drawings are made of, as SVG. All text from plans passes through `safe`."""

from __future__ import annotations

from html import escape


def clean(text: str) -> str:
    """``text`` with everything invisible spelled out: no name may look like another or break the markup."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def safe(text: str) -> str:
    """``text`` as HTML and SVG may contain it, in an element or in a quoted attribute."""
    return escape(clean(text))


def cut(text: str, most: int) -> str:
    """``text`` in at most so many characters."""
    return text if len(text) <= most else text[: max(0, most - 1)] + "…"


def label(x: float, y: float, text: str, css: str, anchor: str = "start") -> str:
    """A line of text that starts, or ends, at x."""
    side = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}"{side}>{safe(text)}</text>'


def box(x: float, y: float, width: float, height: float, css: str, tip: str = "", radius: int = 5) -> str:
    """A rectangle; ``tip`` shows under the pointer."""
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{radius}"'
    title = "\n".join(safe(line) for line in tip.splitlines())
    return f'<rect class="{css}" {place}>' + (f"<title>{title}</title></rect>" if tip else "</rect>")


def line(way: str, css: str = "edge") -> str:
    """A path with a tip at its end. Where tips are defined is said once, by the whole drawing."""
    return f'<path class="{css}" marker-end="url(#TIP)" d="{way}"/>'


def arrow(x1: float, y1: float, x2: float, y2: float, css: str = "edge") -> str:
    """A straight arrow."""
    return line(f"M{x1:.1f},{y1:.1f} L{x2:.1f},{y2:.1f}", css)


def curve(x1: float, y1: float, x2: float, y2: float, bend: float, css: str = "edge") -> str:
    """An arrow that leaves and arrives level, by way of ``bend``."""
    return line(f"M{x1:.1f},{y1:.1f} C{bend:.1f},{y1:.1f} {bend:.1f},{y2:.1f} {x2:.1f},{y2:.1f}", css)


__all__ = ["arrow", "box", "clean", "curve", "cut", "label", "line", "safe"]
