"""Rounds all but those weights whose own blocks a GGUF has, which are kept: no weight is rounded twice.

Legend: B block size.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.models.checkpoint import Checkpoint
from pipeline.models.quantisation import blocks
from pipeline.models.quantisation.blocks import Array, Blocks
from pipeline.models.quantisation.names import BLOCK_SIZE, Quantisation
from pipeline.models.quantisation.rounding import Rounding
from pipeline.models.quantisation.writing import linear_weights
from pipeline.store.records import KeptBlocks, QuantisedRecord

if TYPE_CHECKING:
    from pipeline.models.quantisation.gguf_blocks import GgufWeight

log = logging.getLogger(__name__)


class KeepingBlocks:
    """A rounding (`rounding.Rounding`) that keeps what a GGUF rounded.

    Args:
        file: the GGUF; of a split model the first part.
        weights: name in the checkpoint → where its own blocks are.
        how: rounds all others.
    """

    def __init__(self, file: Path, weights: Mapping[str, GgufWeight], how: Rounding) -> None:
        self.file, self.weights, self.how = file, weights, how
        self._kept, self._seen = 0, 0

    def __call__(self, name: str, weight: Array, bits: int, block_size: int) -> Blocks:
        """As the GGUF has it, where that is what the checkpoint has; else as `how` rounds it."""
        self._seen += 1
        own = self._own(name, bits)
        if own is None or own.block_size != block_size or not _says(own, weight):
            return self.how(name, weight, bits, block_size)
        self._kept += 1
        return own

    def refuse_other(self, record: QuantisedRecord, path: Path) -> None:
        """As `how` does."""
        self.how.refuse_other(record, path)

    def fields(self, record: Path) -> dict[str, Any]:
        """What `how` says, and how many weights were kept; a person is told, too."""
        kept = KeptBlocks(file=self.file.name, weights=self._kept, of=self._seen)
        log.info("%s", kept.words)
        return {**self.how.fields(record), "kept": kept.plain()}

    def _own(self, name: str, bits: int) -> Blocks | None:
        """A weight's own blocks in so many bits, if they can be said so."""
        one = self.weights.get(name)
        if one is None or one.bits > bits or (own := one.blocks()) is None:
            return None
        if one.bits == bits:
            return own
        # Of 8 bits no scale is negative, and there is room for both signs of a 4-bit number.
        below = np.repeat(np.signbit(own.scales), own.block_size, axis=0)
        return Blocks(np.where(below, -own.values, own.values), np.abs(own.scales))


def usual_block_size(checkpoint: Checkpoint, quantisation: Quantisation) -> int:
    """The block size where nobody names one: a GGUF's own, where that keeps most weights as they are.

    Args:
        checkpoint: of the weights.
        quantisation: as it was asked for, of whatever block size.
    """
    origin = _origin(checkpoint)
    if isinstance(origin, _Blocks) and origin.keeps_most(checkpoint, quantisation):
        return origin.size
    return BLOCK_SIZE


def keeping(checkpoint: Checkpoint, quantisation: Quantisation, how: Rounding) -> Rounding:
    """How a checkpoint's weights are rounded: those that came from a GGUF in blocks stay as they are.

    Args:
        checkpoint: of the weights.
        quantisation: their form; where its blocks are longer, and most weights could stay, a person is told.
        how: rounds what cannot stay.
    """
    origin = _origin(checkpoint)
    if isinstance(origin, str):
        log.warning("%s: all weights are rounded, although they may have been before", origin)
    if not isinstance(origin, _Blocks):
        return how
    if quantisation.block_size == origin.size and origin.weights:
        return KeepingBlocks(origin.file, origin.weights, how)
    if origin.keeps_most(checkpoint, quantisation):
        words = "%s has blocks of %d, which --block-size %d keeps: no weight is rounded again then"
        log.info(words, origin.file, origin.size, origin.size)
    return how


@dataclass(frozen=True, slots=True)
class _Blocks:
    """What a GGUF has in blocks of a size, by the checkpoint's names."""

    file: Path
    weights: Mapping[str, GgufWeight]
    size: int

    def keeps_most(self, checkpoint: Checkpoint, quantisation: Quantisation) -> bool:
        """Whether most weights of products could stay as they are."""
        fitting = sum(one.bits <= quantisation.bits for one in self.weights.values())
        return 2 * fitting > len(linear_weights(checkpoint))


def _origin(checkpoint: Checkpoint) -> _Blocks | str | None:
    """The blocks of the GGUF that a checkpoint came from; why they cannot be read; None where it has none."""
    if checkpoint.source.kind != "gguf":
        return None
    from pipeline.models.gguf import origins
    from pipeline.models.quantisation import gguf_blocks

    origin = origins.of_checkpoint(checkpoint)
    if not isinstance(origin, origins.Origin):
        return origin
    weights = gguf_blocks.weights(origin.tensors, checkpoint.config)
    return _Blocks(origin.file, weights, gguf_blocks.BLOCK_SIZE)


def _says(own: Blocks, weight: Array) -> bool:
    """Whether blocks say a weight as the checkpoint has it, which keeps it in float16."""
    return own.values.shape == weight.shape and bool(
        np.allclose(blocks.dequantised(own), weight, rtol=2.0**-10, atol=2.0**-24)
    )
