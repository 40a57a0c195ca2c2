"""The language: text to graphs (`parse`), graphs to text (`show`), text in its canonical layout (`format`).

Text is for people; what travels is `planc.codec`.
"""

from planc.text.elaborate import Module
from planc.text.format import format
from planc.text.gradients import Derivative, Differentiate
from planc.text.parser import parse
from planc.text.printer import show

__all__ = ["Derivative", "Differentiate", "Module", "format", "parse", "show"]
