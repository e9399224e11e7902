"""How far a model without some sublayers is from the whole one: KL(whole ‖ cut) at some positions.

What makes many skip sets cheap: they are measured in the order of their masks, each from the first layer on
in which it differs from the one before; the stream there is kept. Every sequence is a pass of its own, so
that its numbers do not depend on what else is measured.

Legend: N sequences, R of them, S skip sets, T tokens, K positions of a sequence that are read, V vocabulary,
C hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from pipeline.models import compensation, head
from pipeline.models.compensation import MapParts, MapPlace
from pipeline.models.reference import Reference
from pipeline.types import BASE, SkipSet, UserError

Array = npt.NDArray[Any]
EVERY = 4
"""Every fourth position is read: the head of a small model is a fifth of its work."""
Values = tuple[float, float]
"""(KL, cross-entropy) of one sequence, in nats, means over its positions."""
Mask = tuple[tuple[bool, bool, tuple[MapPlace, ...]], ...]
"""Of each layer: whether its attention and its MLP go, and the maps that stand in it."""


class Divergences:
    """Measures skip sets against the whole model; what was measured is remembered.

    Args:
        reference: the whole model.
        tokens: [N, T] token ids.
        maps: what stands in for a sublayer that is left out, by place; without one nothing does.
    """

    def __init__(
        self,
        reference: Reference,
        tokens: npt.NDArray[np.int64],
        maps: Mapping[MapPlace, MapParts] = MappingProxyType({}),
    ) -> None:
        self.reference, self.tokens, self.maps = reference, tokens, maps
        self.positions = torch.arange(EVERY - 1, tokens.shape[1] - 1, EVERY)
        if not len(self.positions):
            raise UserError(f"sequences of {tokens.shape[1]} tokens are too short; take {EVERY + 1} or more")
        self._teacher: dict[int, torch.Tensor] = {}
        self._known: dict[tuple[SkipSet, int], Values] = {}

    def with_maps(self, maps: Mapping[MapPlace, MapParts]) -> Divergences:
        """The same with other maps; what was computed of the whole model is shared."""
        other = Divergences(self.reference, self.tokens, maps)
        other._teacher = self._teacher
        return other

    def of(self, skip: SkipSet) -> Array:
        """[N] KL(whole ‖ without `skip`) of each sequence, in nats a position.

        Raises:
            UserError: a loss is not finite.
        """
        values: Array = self.measure([skip])[0]
        return values

    def losses(self, skip: SkipSet) -> Array:
        """[N] cross-entropy of each sequence without `skip` at the same positions, in nats.

        Raises:
            UserError: a loss is not finite.
        """
        rows = range(len(self.tokens))
        self.measure([skip], rows)
        return np.array([self._known[skip, row][1] for row in rows])

    def measure(self, skips: Sequence[SkipSet], rows: Sequence[int] | None = None) -> Array:
        """[S, R] KL of each skip set on each of some sequences, all N by default.

        Raises:
            UserError: a loss is not finite.
        """
        wanted = range(len(self.tokens)) if rows is None else rows
        with torch.inference_mode():
            for row in wanted:
                if new := [skip for skip in dict.fromkeys(skips) if (skip, row) not in self._known]:
                    self._measure_row(new, row)
        return np.array([[self._known[skip, row][0] for row in wanted] for skip in skips])

    def _measure_row(self, skips: list[SkipSet], row: int) -> None:
        """Measures skip sets on one sequence."""
        ids = torch.from_numpy(self.tokens[row : row + 1])
        if row not in self._teacher:
            self._teacher[row] = self._last_streams([BASE], ids)[BASE]
        streams = self._last_streams(skips, ids)
        totals = {skip: np.zeros(2) for skip in skips}
        for part in head.pieces(self.reference, 1, self.positions):
            teacher = self._log_probabilities(ids, self._teacher[row], part)
            for skip, stream in streams.items():
                totals[skip] += _sums(self._log_probabilities(ids, stream, part), teacher, ids[:, part + 1])
        for skip, total in totals.items():
            if not np.isfinite(total).all():
                raise UserError(
                    f"the loss of {skip.name} is not finite: a weight is NaN or infinite; look with "
                    "`pipeline check --localize`"
                )
            divergence, loss = total / len(self.positions)
            self._known[skip, row] = float(divergence), float(loss)

    def _last_streams(self, skips: list[SkipSet], ids: torch.Tensor) -> dict[SkipSet, torch.Tensor]:
        """Skip set → the stream [1, T, C] behind its last layer; common beginnings are computed once."""
        masks = {skip: self._mask(skip) for skip in skips}
        last: dict[SkipSet, torch.Tensor] = {}
        streams: dict[int, torch.Tensor] = {}
        before: Mask = ()
        for skip in sorted(skips, key=masks.__getitem__):
            first = _first_difference(before, masks[skip])
            final = len(self.reference.layers) - 1
            with (
                self.reference.without(skip, compensation.active(self.maps, skip)),
                self.reference.taken_up(first, streams.get(first)),
                self.reference.entering() as entering,
                self.reference.leaving([final]) as leaving,
            ):
                self.reference.logits_at(ids, torch.arange(0))
            # What enters a layer that was passed over is not its own stream.
            kept = {layer: stream for layer, stream in streams.items() if layer <= first}
            streams = kept | {layer: stream for layer, stream in entering.items() if layer > first}
            last[skip], before = leaving[final], masks[skip]
        return last

    def _mask(self, skip: SkipSet) -> Mask:
        places = sorted(compensation.active(self.maps, skip))
        return tuple(
            (i in skip.attention, i in skip.mlp, tuple(place for place in places if place.first == i))
            for i in range(len(self.reference.layers))
        )

    def _log_probabilities(self, ids: torch.Tensor, stream: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        """[K, V] at some positions, in fp32."""
        return functional.log_softmax(head.logits_of(self.reference, ids, stream, part)[0].float(), dim=-1)


def _first_difference(one: Mask, other: Mask) -> int:
    """The first layer in which two masks differ; 0 where one of them is empty."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((layer for layer, (a, b) in pairs if a != b), 0)


def _sums(student: torch.Tensor, teacher: torch.Tensor, wanted: torch.Tensor) -> Array:
    """[2]: KL(teacher ‖ student) and cross-entropy, added over K positions; [K, V] both, wanted [1, K]."""
    divergences = (teacher.exp() * (teacher - student)).sum(dim=-1)
    losses = -student.gather(1, wanted.to(student.device).T)
    return np.array([float(divergences.double().sum()), float(losses.double().sum())])
