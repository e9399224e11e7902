"""A model's head at some positions at a time: with 262,144 words, all logits of a batch are gigabytes.

Legend: B batch, T tokens, K positions, V vocabulary, C hidden size.
"""

from __future__ import annotations

import torch

from pipeline.models.reference import Reference
from pipeline.runtime.runner import LOGIT_NUMBERS


def pieces(reference: Reference, rows: int, columns: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Columns [K] in pieces, whose logits of so many rows are no more than LOGIT_NUMBERS."""
    vocabulary = reference.model.get_output_embeddings().weight.shape[0]
    return torch.split(columns, max(1, LOGIT_NUMBERS // (rows * vocabulary)))


def last_stream(reference: Reference, input_ids: torch.Tensor) -> torch.Tensor:
    """[B, T, C]: the residual stream behind the last layer, of a pass without a cache and a head."""
    last = len(reference.layers) - 1
    with reference.entering(), reference.leaving([last]) as kept:
        reference.logits_at(input_ids, torch.arange(0))
    return kept[last]


def logits_of(
    reference: Reference, input_ids: torch.Tensor, stream: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """[B, K, V]: the logits at K columns of `last_stream`'s stream, and nothing of the layers again."""
    with reference.taken_up(len(reference.layers), stream):
        return reference.logits_at(input_ids, columns)
