"""Import of programs that ``torch.export`` saved: a ``.pt2`` file as a plan of the module's forward pass.

torch reads the file, and what it reads may run code: only files that the user trusts come here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from planc.capture.export import quiet
from planc.capture.trace import (
    DEFAULTS,
    Captured,
    Options,
    Ranges,
    Signature,
    parameter_names,
    trace,
    unique_name,
)
from planc.errors import CaptureError, DecodeError
from planc.ir import MAX_DIM


def load_exported(path: str | os.PathLike[str], options: Options = DEFAULTS) -> Captured:
    """The forward pass that a ``.pt2`` file holds, with its parameters and buffers; dims vary as in the file.

    Args:
        path: a file that ``torch.export.save`` wrote, from a source that the user trusts.
        options: a name (the file's by default) and a progress callback; dims and ranges are the file's own.

    Raises:
        DecodeError: the file is no exported program.
        CaptureError: the program cannot be a plan.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file, quiet():
        try:
            program = torch.export.load(file)
        except Exception as error:  # whatever torch's reader meets
            raise DecodeError(
                f"{os.fspath(path)} is no program that torch.export.save wrote: "
                f"{type(error).__name__}: {error}"
            ) from error
    if program.example_inputs is None:
        raise CaptureError(
            f"{os.fspath(path)} holds no example inputs; export it anew with torch.export.save"
        )
    args, kwargs = program.example_inputs
    examples = [*args, *kwargs.values()]
    module = program.module(check_guards=False)  # a plan checks its inputs' types itself
    signature = Signature(parameter_names(module.forward, len(examples)), examples)
    dynamic, ranges = _dims(program, signature)
    name = options.name or unique_name(Path(path).stem, set())
    return trace(module, examples, Options(dynamic, ranges, name, options.progress), tuple(kwargs))


def _dims(program: ExportedProgram, signature: Signature) -> tuple[dict[str, dict[int, str]], Ranges]:
    """The program's varying dims by input path, and their ranges."""
    fakes: Mapping[str, Any] = {
        n.name: n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"
    }
    user = [
        fakes[name] for name in program.graph_signature.user_inputs if isinstance(name, str) and name in fakes
    ]
    tensors = [fake for fake in user if isinstance(fake, torch.Tensor)]
    names: dict[Any, str] = {}
    ranges: dict[str, tuple[int, int]] = {}
    dynamic: dict[str, dict[int, str]] = {}
    for path, fake in zip(signature.paths, tensors, strict=True):
        dynamic[path] = {}
        for i, size in enumerate(fake.shape):
            if not isinstance(size, torch.SymInt):
                continue
            expr = size.node.expr
            if not expr.is_Symbol:
                raise CaptureError(
                    f"dim {i} of input {path!r} is {expr}; only dims that vary on their own are supported"
                )
            name = names.setdefault(expr, "b" if not i and "b" not in names.values() else f"d{len(names)}")
            found = program.range_constraints.get(expr)
            if found is not None:
                ranges[name] = (max(1, int(found.lower)), int(min(found.upper, MAX_DIM)))
            dynamic[path][i] = name
    return dynamic, ranges
