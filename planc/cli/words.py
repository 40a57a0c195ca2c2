"""Figures and tables as people read them in 80 columns. Says nothing about plans."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.console import Console, JustifyMethod
from rich.table import Table

from planc.draw.figures import decimal, size


def console() -> Console:
    """Standard output, without colours where it is no terminal, and text shown as it is."""
    return Console(markup=False, highlight=False, emoji=False, soft_wrap=False)


def table(*columns: tuple[str, JustifyMethod, str]) -> Table:
    """An empty table of these columns: header, side, and what stands below the line at its end."""
    made = Table(box=SIMPLE, pad_edge=False, show_edge=False, show_footer=True)
    for header, justify, footer in columns:
        made.add_column(header, justify=justify, footer=footer, overflow="fold")
    return made


__all__ = ["console", "decimal", "size", "table"]
