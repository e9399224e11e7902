"""Candidates for removal measured beside each other: the one whose absence costs least wins.

What makes it cheap: the layers below a candidate are computed once for all candidates; the head is computed
at every second position; and a candidate whose loss is beyond doubt above the best one's is not measured on
further sequences.

Legend: N sequences, T tokens, B sequences a batch, K positions of a sequence whose loss is read, C hidden
size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.models import compensation, head
from pipeline.models.compensation import MapParts, MapPlace
from pipeline.models.reference import Reference
from pipeline.store.records import Removal
from pipeline.types import SkipSet, UserError

Array = npt.NDArray[Any]
Losses = dict[str, list[Array]]
"""Candidate → [B·K] losses of each batch that it was measured on."""
BATCH = 2
EVERY = 2
"""The loss is read at every second position."""
DOUBT = 1.5
"""Standard errors behind the best, position by position, at which a candidate is dropped."""


class Race:
    """Measures candidates of a kind beside each other.

    Args:
        reference: the whole model.
        kind: attn, mlp or block.
        tokens: [N, T] token ids.
        maps: what stands in for a sublayer that is left out, by place; without one nothing does.

    Attributes:
        flops, plain_flops: of the last `run`, as computed, and with a whole pass for each candidate.
    """

    def __init__(
        self,
        reference: Reference,
        kind: str,
        tokens: npt.NDArray[np.int64],
        maps: Mapping[MapPlace, MapParts] = MappingProxyType({}),
    ) -> None:
        self.reference, self.kind, self.tokens, self.maps = reference, kind, tokens, maps
        self.flops = self.plain_flops = 0.0
        self.positions = torch.arange(EVERY - 1, tokens.shape[1] - 1, EVERY)
        head = reference.model.get_output_embeddings().weight.numel()
        self.per_layer = [
            2.0 * sum(p.numel() for p in layer.parameters() if p.ndim == 2) for layer in reference.layers
        ]
        self.head = 2.0 * head * len(self.positions) / tokens.shape[1]  # a token, on average

    def losses(self, skip: SkipSet) -> list[float]:
        """[N] mean loss of each sequence without `skip`, in nats."""
        with torch.inference_mode(), self._without(skip):
            means = [
                self._tail(batch, 0, None).reshape(len(batch), -1).mean(axis=1) for batch in self._batches()
            ]
        return [float(value) for value in np.concatenate(means)]

    def run(self, removed: SkipSet) -> Removal:
        """The candidate whose absence costs least, once `removed` is left out.

        Raises:
            UserError: no candidate is left, or a loss is not finite.
        """
        self.flops = self.plain_flops = 0.0
        candidates = self._candidates(removed)
        if not candidates:
            raise UserError(f"no {self.kind} is left to leave out")
        self.plain_flops = len(candidates) * self.tokens.size * (sum(self.per_layer) + self.head * EVERY)
        losses = self._measured(candidates, removed)
        means = {name: float(np.mean(np.concatenate(batches))) for name, batches in losses.items()}
        best, *rest = sorted(losses, key=lambda name: (-len(losses[name]), means[name]))
        rows = {name: sum(len(part) for part in losses[name]) // len(self.positions) for name in rest}
        others = tuple((name, means[name], rows[name]) for name in rest)
        return Removal(removed=best, loss=means[best], others=others)

    def _candidates(self, removed: SkipSet) -> list[SkipSet]:
        """One layer's sublayers each, of the kind, that are still there."""
        every = [SkipSet.of(self.kind, [layer]) for layer in range(len(self.reference.layers))]
        return [candidate for candidate in every if candidate - removed == candidate]

    def _measured(self, candidates: list[SkipSet], removed: SkipSet) -> Losses:
        """The losses of each candidate, on as many batches as it stays in the race."""
        losses: Losses = {candidate.name: [] for candidate in candidates}
        racing = candidates
        with torch.inference_mode(), self._without(removed):
            for batch in self._batches():
                trunk = self._trunk(batch) if len(racing) > 1 else {}
                for candidate in racing:
                    first = (candidate.attention or candidate.mlp)[0] if trunk else 0
                    with self._without(candidate):
                        losses[candidate.name].append(self._tail(batch, first, trunk.get(first)))
                racing = still_racing(racing, losses)
        return losses

    def _without(self, skip: SkipSet) -> AbstractContextManager[None]:
        """Leaves sublayers out for a while; their maps, if any, are in their stead."""
        return self.reference.without(skip, compensation.active(self.maps, skip))

    def _batches(self) -> Iterator[torch.Tensor]:
        return iter(torch.split(torch.from_numpy(self.tokens), BATCH))

    def _trunk(self, batch: torch.Tensor) -> dict[int, torch.Tensor]:
        """Layer → the stream [B, T, C] before it."""
        self.flops += batch.numel() * sum(self.per_layer)
        with self.reference.entering() as streams:
            self.reference.logits_at(batch, self.positions[-1:])
        return streams

    def _tail(self, batch: torch.Tensor, first: int, stream: torch.Tensor | None) -> Array:
        """[B·K] losses of a pass that begins before layer `first` with the stream there."""
        self.flops += batch.numel() * (sum(self.per_layer[first:]) + self.head)
        parts = head.pieces(self.reference, len(batch), self.positions)
        with self.reference.taken_up(first, stream):
            last = head.last_stream(self.reference, batch)
        logits = (head.logits_of(self.reference, batch, last, part) for part in parts)
        rows = [_losses(values, batch[:, part + 1]) for values, part in zip(logits, parts, strict=True)]
        losses: Array = np.concatenate(rows, axis=1).reshape(-1)
        if not np.isfinite(losses).all():
            raise UserError(
                "a loss is not finite: a weight is NaN or infinite; look with `pipeline check --localize`"
            )
        return losses


def still_racing(racing: list[SkipSet], losses: Losses) -> list[SkipSet]:
    """The candidates that may yet win: not beyond doubt above the best mean, position by position."""
    whole = {candidate: np.concatenate(losses[candidate.name]).astype(np.float64) for candidate in racing}
    best = min(racing, key=lambda candidate: float(whole[candidate].mean()))

    def is_open(candidate: SkipSet) -> bool:
        behind = whole[candidate] - whole[best]
        return bool(behind.mean() <= DOUBT * behind.std() / len(behind) ** 0.5)

    return [candidate for candidate in racing if candidate is best or is_open(candidate)]


def _losses(logits: torch.Tensor, wanted: torch.Tensor) -> Array:
    """[B, K] losses in nats of logits [B, K, V] at wanted tokens [B, K]."""
    flat = wanted.flatten().to(logits.device)
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), flat, reduction="none")
    rows: Array = losses.cpu().numpy().reshape(wanted.shape)
    return rows
