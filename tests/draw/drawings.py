"""What tests of drawings share: reading an SVG back, and rules that every drawing keeps."""

from __future__ import annotations

from xml.etree import ElementTree

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def rects(svg: str, css: str) -> list[ElementTree.Element]:
    root = ElementTree.fromstring(svg)
    return [r for r in root.iter(f"{SVG}rect") if css in (r.get("class") or "").split()]


def frame(rect: ElementTree.Element) -> tuple[float, float, float, float]:
    """Left, top, right and bottom."""
    x, y, w, h = (float(rect.get(name) or "nan") for name in ("x", "y", "width", "height"))
    return x, y, x + w, y + h


def check_places(svg: str) -> None:
    """Everything is inside the picture, and no box of a node covers another."""
    root = ElementTree.fromstring(svg)
    left, top, width, height = (float(part) for part in (root.get("viewBox") or "").split())
    for rect in root.iter(f"{SVG}rect"):
        x1, y1, x2, y2 = frame(rect)
        assert left <= x1 <= x2 <= left + width
        assert top <= y1 <= y2 <= top + height
    boxes = sorted(frame(rect) for rect in rects(svg, "node"))
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            assert b[0] >= a[2] or b[1] >= a[3] or b[3] <= a[1], "two boxes overlap"
