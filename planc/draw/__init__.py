"""Drawings of plans: SVG, a page, a notebook's cell, the DOT language. They run nothing."""

from planc.draw.dot import dot
from planc.draw.drawing import Captions, svg
from planc.draw.page import Sized, by_op, cell, page

__all__ = ["Captions", "Sized", "by_op", "cell", "dot", "page", "svg"]
