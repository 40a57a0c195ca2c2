"""Gradient transforms for training steps: what happens to gradients between autograd and the optimizer.

A transform is any traceable function from gradients by parameter path to gradients by the same paths; those
that PyTorch users expect are here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from planc.errors import CaptureError

Gradients = Mapping[str, torch.Tensor]
GradTransform = Callable[[Gradients], Gradients]


def clip_grad_norm(max_norm: float, norm_type: float = 2.0) -> GradTransform:
    """Scale all gradients so that their norm together is at most ``max_norm``.

    The arithmetic is that of ``torch.nn.utils.clip_grad_norm_``.

    Args:
        max_norm: the largest norm of all gradients seen as one vector.
        norm_type: the p of the p-norm; may be ``inf``.
    """

    def clip(grads: Gradients) -> Gradients:
        norms = [torch.linalg.vector_norm(g, norm_type) for g in grads.values()]
        total = torch.linalg.vector_norm(torch.stack(norms), norm_type)
        scale = torch.clamp(max_norm / (total + 1e-6), max=1.0)
        return {path: g * scale for path, g in grads.items()}

    return clip


def clip_grad_value(clip_value: float) -> GradTransform:
    """Limit every element of every gradient to -clip_value..clip_value.

    What it computes is what ``torch.nn.utils.clip_grad_value_`` does.
    """

    def clip(grads: Gradients) -> Gradients:
        return {path: torch.clamp(g, -clip_value, clip_value) for path, g in grads.items()}

    return clip


def transformed(transform: GradTransform | None, grads: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The gradients after a transform, checked to be for the same parameters.

    Raises:
        CaptureError: the transform lost or added a path, or changed a shape or dtype.
    """
    if transform is None:
        return grads
    out = dict(transform(dict(grads)))
    if out.keys() != grads.keys():
        odd = sorted(out.keys() ^ grads.keys())
        raise CaptureError(
            f"grad_transform must return a gradient for each path that it gets; it differs in {odd}"
        )
    for path, grad in grads.items():
        if out[path].shape != grad.shape or out[path].dtype != grad.dtype:
            raise CaptureError(
                f"grad_transform must keep shapes and dtypes; for {path!r} it got "
                f"{grad.dtype} {list(grad.shape)} and returned {out[path].dtype} {list(out[path].shape)}"
            )
    return {path: out[path] for path in grads}
