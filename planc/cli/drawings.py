"""What `--emit` makes of a plan: its text or a drawing of it. The drawings themselves are `planc.draw`'s."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import planc
from planc.cli.sizes import Sizes
from planc.draw import Sized, dot, page, svg


class Emit(StrEnum):
    """What `compile` writes."""

    ARTIFACT = "artifact"
    TEXT = "text"
    DOT = "dot"
    SVG = "svg"
    HTML = "html"


class Form(StrEnum):
    """What `show` prints: all that `compile` writes and people read."""

    TEXT = "text"
    DOT = "dot"
    SVG = "svg"
    HTML = "html"


def rendered(plan: planc.Plan, form: Form, sizes: Sizes, private: Sequence[str]) -> str:
    """The plan in a form for people; ends with a newline.

    Args:
        plan: any plan.
        form: the form.
        sizes: sizes of its dims, for the cost that a page shows.
        private: paths of inputs that drawings mark as private.

    Raises:
        InputError: ``private`` or ``sizes`` do not fit the plan.
    """
    match form:
        case Form.TEXT:
            return plan.text
        case Form.DOT:
            return dot(plan.graph, private)
        case Form.SVG:
            return svg(plan.graph, private)
        case Form.HTML:
            sized = Sized(plan.cost(**sizes.dims), sizes.dims, sizes.note)
            return page(plan.graph, plan.id, plan.text, sized, private)


__all__ = ["Emit", "Form", "rendered"]
