"""Imports torchvision, also beside a torch that its compiled part cannot load into.

torchvision 0.28.0 from the package index is built against CUDA. Beside a CPU-only torch 2.13.0 its compiled
part does not load, so the operators ``nms`` and ``qnms`` are never declared; yet ``import torchvision``
attaches shape functions to both and stops with "operator torchvision::nms does not exist". Declaring the
two schemas first, and nothing else, lets the import through: data sets, transforms and models then work, and
the operators themselves still say that the compiled part is missing when they are called.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

_MISSING_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

# A declaration lives as long as its library object.
_declared: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """Returns the module ``torchvision``, declaring its missing operators only if the import fails for them.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
        RuntimeError: torchvision does not fit the installed torch for another reason.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if _declared or "operator torchvision::nms does not exist" not in str(error):
            raise
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _MISSING_SCHEMAS:
        library.define(schema)
    _declared.append(library)
    return importlib.import_module("torchvision")
