"""A variant with something in the place of what it skips, run without being written.

Legend: N sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from pipeline.calib.compensation.overlay import Overlay
from pipeline.calib.losses import cross_entropy
from pipeline.models import head, texts
from pipeline.models.reference import Reference
from pipeline.types import UserError


@contextmanager
def installed(reference: Reference, overlay: Overlay) -> Iterator[None]:
    """Puts an overlay into a whole model for a while.

    Args:
        reference: the whole model.
        overlay: what is left out, and what stands in for it.
    """
    changed = {name: reference.model.get_parameter(name) for name in overlay.weights}
    kept = {name: parameter.data for name, parameter in changed.items()}
    try:
        for name, parameter in changed.items():
            parameter.data = overlay.weights[name].to(parameter.dtype)
        with reference.without(overlay.skip, overlay.parts()):
            yield
    finally:
        for name, parameter in changed.items():
            parameter.data = kept[name]


def mean_loss(reference: Reference, tokens: texts.Tokens, overlay: Overlay) -> float:
    """Nats a token over sequences, in fp32.

    Args:
        reference: the whole model.
        tokens: [N, T] ids.
        overlay: what is left out, and what stands in for it.

    Raises:
        UserError: the loss is no number.
    """
    with torch.inference_mode(), installed(reference, overlay):
        losses = [_loss(reference, ids[None]) for ids in torch.from_numpy(np.ascontiguousarray(tokens))]
    loss = float(np.mean(losses))
    if not np.isfinite(loss):
        raise UserError(
            f"the loss of {overlay.skip.name} is not finite; a weight is NaN or infinite: look with "
            "`pipeline check --localize`"
        )
    return loss


def _loss(reference: Reference, ids: torch.Tensor) -> float:
    """Mean over one sequence [1, T]; the head is computed piece by piece where it is large."""
    stream = head.last_stream(reference, ids)
    pieces = head.pieces(reference, 1, torch.arange(ids.shape[1]))
    parts = (cross_entropy(head.logits_of(reference, ids, stream, part), ids, part) for part in pieces)
    return float(sum(parts))
