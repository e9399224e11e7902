"""A variant with something in the place of what it skips, run without being written.

Legend: N sequences, T tokens, C hidden size.
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
from pipeline.types import SkipSet, UserError


@contextmanager
def installed(reference: Reference, overlay: Overlay) -> Iterator[None]:
    """Puts an overlay into a whole model for a while.

    Args:
        reference: the whole model.
        overlay: what is left out, and what stands in for it; its weights may be on another device.
    """
    changed = {name: reference.model.get_parameter(name) for name in overlay.weights}
    kept = {name: parameter.data for name, parameter in changed.items()}
    try:
        for name, parameter in changed.items():
            with torch.inference_mode(False):  # no parameter takes on what was copied in it
                weight = overlay.weights[name].to(parameter.device, parameter.dtype)
            parameter.data = weight
        with reference.without(overlay.skip, overlay.parts()):
            yield
    finally:
        for name, parameter in changed.items():
            parameter.data = kept[name]


class Trial:
    """Sequences that variants of a model are judged by.

    What all of them share, the layers below the first that one changes, is computed once.

    Args:
        reference: the whole model.
        tokens: [N, T] ids.
    """

    def __init__(self, reference: Reference, tokens: texts.Tokens) -> None:
        self.reference = reference
        ids = torch.from_numpy(np.ascontiguousarray(tokens)).to(reference.model.device)
        self._rows = [row[None] for row in ids]
        self._layer = 0
        self._streams: list[torch.Tensor | None] = [None] * len(self._rows)

    def loss(self, overlay: Overlay) -> float:
        """Nats a token, in fp32.

        Args:
            overlay: what is left out, and what stands in for it.

        Raises:
            UserError: the loss is no number.
        """
        first = overlay.first_layer
        with torch.inference_mode():
            if first and not 0 < self._layer <= first:
                self._streams, self._layer = [self._before(first, ids) for ids in self._rows], first
            starts = [(self._layer, stream) if first else (0, None) for stream in self._streams]
            with installed(self.reference, overlay):
                losses = [self._loss(ids, *start) for ids, start in zip(self._rows, starts, strict=True)]
        loss = float(np.mean(losses))
        if not np.isfinite(loss):
            raise UserError(
                f"the loss of {overlay.skip.name} is not finite; a weight is NaN or infinite: look with "
                "`pipeline check --localize`"
            )
        return loss

    def _before(self, layer: int, ids: torch.Tensor) -> torch.Tensor:
        """[1, T, C]: the whole model's stream before a layer; the layers from there on are left out."""
        rest = tuple(range(layer, len(self.reference.layers)))
        with self.reference.without(SkipSet(rest, rest)), self.reference.entering() as entering:
            self.reference.logits_at(ids, torch.arange(0))
        return entering[layer]

    def _loss(self, ids: torch.Tensor, layer: int, stream: torch.Tensor | None) -> float:
        """Mean over one sequence [1, T]; the head is computed piece by piece where it is large."""
        with self.reference.taken_up(layer, stream):
            last = head.last_stream(self.reference, ids)
        pieces = head.pieces(self.reference, 1, torch.arange(ids.shape[1]))
        parts = (cross_entropy(head.logits_of(self.reference, ids, last, part), ids, part) for part in pieces)
        return float(sum(parts))
