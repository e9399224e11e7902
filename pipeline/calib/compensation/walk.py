"""Sequences on their way through a model's layers: each pass goes on where the one before it ended.

Maps that are fitted one after the other, each on what the variant computes with those before it, so cost
about one pass in all, not one each.

Legend: N sequences, T tokens, C hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from pipeline.calib.compensation import gathering, trial
from pipeline.calib.compensation.gathering import Activations
from pipeline.calib.compensation.overlay import Overlay
from pipeline.models import texts
from pipeline.models.compensation import MapPlace
from pipeline.models.reference import Reference
from pipeline.types import SkipSet


class Walk:
    """The residual streams of sequences before one layer after another; 4·N·T·C bytes.

    Args:
        reference: the whole model, in fp32.
        tokens: [N, T] ids.
    """

    def __init__(self, reference: Reference, tokens: texts.Tokens) -> None:
        self.reference, self.tokens = reference, tokens
        self._layer = 0
        self._streams: list[torch.Tensor | None] = [None] * len(tokens)

    def to(self, place: MapPlace, earlier: Overlay, layer: int | None = None) -> Iterator[Activations]:
        """What each sequence has in a place; to be read to its end.

        Args:
            place: not before that of an earlier call.
            earlier: what stands in for sublayers before the place; those of the place itself are there.
            layer: the lowest that what will stand in this place changes; its own first by default. The next
                call's passes begin there.

        Raises:
            UserError: activations that are not finite, by layer.
        """
        layer = place.first if layer is None else layer
        beyond = range(place.last + 1, len(self.reference.layers))
        rest = SkipSet(tuple(beyond), tuple(beyond))
        with trial.installed(self.reference, replace(earlier, skip=earlier.skip | rest)):
            for number, row in enumerate(self.tokens):
                with (
                    self.reference.taken_up(self._layer, self._streams[number]),
                    self.reference.entering() as entering,
                ):
                    yield gathering.activations(self.reference, row, place)
                self._streams[number] = entering[layer]
        self._layer = layer
