"""What traced code may not ask a tensor for: its value, its text, its data in NumPy. Words and checks only.

A plan knows no values before it runs, so Python that needs one can only be refused, at the user's own line.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FrameType
from typing import Any

import torch

_BRANCH = (
    "the code branches on the value of a tensor, which a plan cannot do: it has no value before it runs. "
    "Use torch.where, or a mask, so that both sides are computed"
)
_NUMBER = (
    "{} takes a number out of a tensor, which a plan cannot do: it has no value before it runs. "
    "Keep it a tensor (of shape [] where need be), or compute it outside and pass it as an input"
)
_NUMPY = (
    "{} hands the tensor to NumPy, which a plan cannot follow; use the function of torch that does the same"
)
_PRINT = (
    "the code prints a tensor, which has no value while it is captured, and a plan prints nothing. "
    "Return the tensor as one more result, or remove the print"
)

_T = torch.Tensor
_REFUSED: dict[Any, str] = {
    _T.__bool__: _BRANCH,
    _T.item: _NUMBER.format(".item()"),
    _T.tolist: _NUMBER.format(".tolist()"),
    _T.__int__: _NUMBER.format("int()"),
    _T.__float__: _NUMBER.format("float()"),
    _T.__index__: _NUMBER.format("its use as an index or a count"),
    _T.numpy: _NUMPY.format(".numpy()"),
    _T.__array__: _NUMPY.format("numpy.asarray()"),
}
_HINTS = {"_detect_is_causal_mask"}
"""Functions of torch that ask for a value in order to be faster only; the answer no is always right."""
_PRINTED = {_T.__repr__, _T.__format__}
_PRINTERS = ("torch/_tensor.py", "torch/overrides.py", "torch/fx/experimental/proxy_tensor.py")

_UNSUPPORTED = {
    "aten._local_scalar_dense": _NUMBER.format("the code"),
    **dict.fromkeys(
        ("aten.nonzero", "aten.masked_select", "aten._unique2", "aten.unique_dim", "aten.unique_consecutive"),
        "the shape of its result depends on data, so a plan cannot know it; use torch.where or a mask",
    ),
}


_INSTEAD = {
    **dict.fromkeys(
        ("aten._embedding_bag", "aten._embedding_bag_forward_only"),
        "use nn.Embedding, and the sum, mean or maximum over the words that it gives",
    ),
    "aten._pack_padded_sequence": "run the network on the padded batch, and mask what is beyond each length",
}
"""What does the same as operations that people meet more often than others."""


def call_checked(func: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Any, str | None]:
    """Call a function of torch; returns its result, and what is wrong with it where it asked for a value.

    Values of constants are known, so ``torch.tensor(3).item()`` is as good as ``3``.
    """
    refusal = _REFUSED.get(func)
    if refusal is None:
        return func(*args, **kwargs), None
    try:
        result = func(*args, **kwargs)
    except Exception:  # torch has no one error for this
        return None, refusal
    return result, refusal if _is_unknown(result) else None


def is_hint(func: Callable[..., Any], caller: FrameType | None, is_hidden: Callable[[str], bool]) -> bool:
    """Whether torch asks for a truth value on its own account and can do without the answer."""
    while func is _T.__bool__ and caller is not None and is_hidden(caller.f_code.co_filename):
        if caller.f_code.co_name in _HINTS:
            return True
        caller = caller.f_back
    return False


def print_refusal(
    func: Callable[..., Any], caller: FrameType | None, is_hidden: Callable[[str], bool]
) -> str | None:
    """What is wrong with a call that makes a tensor's text, if the user's own code asked for it."""
    if func not in _PRINTED:
        return None
    while caller is not None and caller.f_code.co_filename.replace("\\", "/").endswith(_PRINTERS):
        caller = caller.f_back
    return None if caller is None or is_hidden(caller.f_code.co_filename) else _PRINT


def unsupported(target: str) -> str:
    """Why an ATen overload is not in the op table, and what to do instead."""
    known = _UNSUPPORTED.get(target.rpartition(".")[0])
    if known is not None:
        return f"{target}: {known}"
    instead = _INSTEAD.get(target.rpartition(".")[0], "see docs/ops.md for what there is")
    return f"{target} is not in the op table, so a plan cannot have it; {instead}"


def _is_unknown(result: Any) -> bool:
    if isinstance(result, list):
        return any(_is_unknown(item) for item in result)
    return isinstance(result, (torch.SymInt, torch.SymFloat, torch.SymBool))


VALUE_NEEDED = _BRANCH
"""Where torch itself found that the code needs a value."""
