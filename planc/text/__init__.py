"""The language: text to graphs (`parse`) and graphs to text (`show`).

Text is for people; what travels is `planc.codec`.
"""

from planc.text.elaborate import Module
from planc.text.parser import parse
from planc.text.printer import show

__all__ = ["Module", "parse", "show"]
