"""docs/ops.md, written from the op table: ``python -m planc.ops.document docs/ops.md``."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from planc.ops import FAMILIES, OpDef, Trait, all_ops
from planc.ops.schema import Param

NOT_COVERED = {
    "gaussian_nll_loss": (
        "`F.gaussian_nll_loss` looks whether a variance is negative",
        "branches on the value of a tensor",
    ),
    "ctc_loss": ("`F.ctc_loss`: the sizes inside depend on the lengths' values", "could not trace this"),
    "embedding_bag": (
        "`nn.EmbeddingBag`; use an embedding and a sum or mean",
        "aten._embedding_bag.default is not in",
    ),
    "max_norm": (
        "`nn.Embedding(max_norm=...)` writes into its weight",
        "aten.embedding_renorm.default is not in",
    ),
    "fractional_max_pool2d": (
        "`F.fractional_max_pool2d` fixes the batch size",
        "depends on the size of dim b",
    ),
    "cdist": ("`torch.cdist`", "aten._cdist_forward.default is not in"),
    "masked_select": (
        "`x[mask]`: the size of its result depends on data; use `torch.where`",
        "a mask has no fixed number",
    ),
    "median": ("`median`, `kthvalue`, `mode`, `unique`, `nonzero`", "aten.median.dim is not in"),
    "fft": ("complex numbers, `torch.fft`", "aten._fft_r2c.default is not in"),
    "svd": ("decompositions of `torch.linalg`", "is not in the op table"),
}
"""What a training step cannot have, and a part of the error that says so; `tests.ops` holds it to that."""

_HEAD = """# Ops

The op table: everything that a plan can do. This page is made from the table by
`python -m planc.ops.document docs/ops.md`; do not edit it.

Operands come first; attributes follow `;` and have the defaults shown. `Tensors` is a list, `Number` a
tensor or a number, `Opt...` may be missing. Results and their types follow from an op's operands and
attributes alone, before anything runs. Whatever PyTorch operator a captured program uses is imported as
the op that names it below, or rewritten into several; one that is missing is refused at capture with
the line that used it.

Traits: *view* ops move no data; *random* ops draw from a key and from nothing else; *factory* ops make
a tensor out of nothing; *optimizer* ops update many tensors at once; *structured* ops run a subplan.
"""
_COLUMNS = "| op | meaning | traits | imports |\n| --- | --- | --- | --- |"
_TAIL = """## What is not covered

These are refused when the program is captured, with the user's own line and this error among others:

| what | the error says |
| --- | --- |
"""
_AFTER = """
No op reads files, shows uninitialised memory (`empty` imports as zeros), or returns a result whose size
depends on data. A slice of a dim that varies (`x[:, :5]`, `x[2:]`) is refused where its length is not one
formula at all sizes, as PyTorch cuts slices off at the ends of a dim; the error says in which range it is one
(`ranges={"n": (5, 1024)}`). Reads by strides (`as_strided`) are imported where they only rearrange all
elements, `x.unfold` where windows lie side by side, and both are refused otherwise. Of optimizers, `LBFGS`,
`SparseAdam` and those that are not of torch.optim are refused.
"""


def document() -> str:
    """The text of docs/ops.md."""
    homes = {op.name: op.infer.__module__.rsplit(".", 1)[-1] for op in all_ops()}
    parts = [_HEAD]
    for family in FAMILIES:
        about = (
            (import_module(f"planc.ops.{family}").__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
        )
        parts.append(f"## {family.capitalize()}\n\n{about}\n\n{_COLUMNS}")
        parts += [_row(op) for op in all_ops() if homes[op.name] == family]
        parts.append("")
    rows = [f"| {what} | `{error}` |" for what, error in NOT_COVERED.values()]
    return "\n".join([*parts, _TAIL.rstrip("\n"), *rows, _AFTER])


def _row(op: OpDef) -> str:
    operands = ", ".join(_parameter(p) for p in op.operands)
    attrs = ", ".join(_parameter(p) for p in op.attrs)
    call = f"{op.name}({'; '.join(part for part in (operands, attrs) if part)})"
    doc = " ".join(op.doc.split("\n\n")[0].split())
    traits = ", ".join(t.value for t in Trait if op.has(t))
    return f"| `{call}` | {doc} | {traits} | {' '.join(f'`{t}`' for t in op.targets)} |".replace(
        "|  |", "| |"
    )


def _parameter(p: Param) -> str:
    kind = p.kind.value.removesuffix("Attr")
    return f"{p.name}: {kind}" + ("" if p.required else f" = {p.default}")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(document(), encoding="utf-8")
