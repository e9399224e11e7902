"""Whether the file of a model with a tied head has a head beside its embedding.

Quantised graphs read a tied head in blocks of its own, and the embedding as the checkpoint has it. llama.cpp
takes `output.weight` where a file has one, and else the embedding.
"""

from __future__ import annotations

import numpy as np

from pipeline.models.gguf.origins import Origin
from pipeline.models.quantisation import blocks, gguf_blocks
from pipeline.models.quantisation.blocks import Blocks
from pipeline.ship.pruned import PrunedModel

_CHUNK = 1 << 24
"""Numbers that are compared at a time."""


def is_apart(model: PrunedModel, origin: Origin | None) -> bool:
    """Whether a tied head has blocks that are not those of the embedding in the file.

    Args:
        model: the variant.
        origin: the user's own GGUF, where the embedding is copied from it.
    """
    name = f"{model.rules.head}.weight"
    weight = model.blocks.get(name)
    if weight is None or not model.config["tie_word_embeddings"]:
        return False
    embedding = gguf_blocks.weights(origin.tensors, model.config).get(name) if origin else None
    theirs = embedding.blocks() if embedding else None
    return theirs is None or not _is_same(weight.blocks(), theirs)


def _is_same(one: Blocks, other: Blocks) -> bool:
    """Whether blocks say the same numbers, be it in 4 bits and in 8."""
    if one.values.shape != other.values.shape:
        return False
    rows, columns = one.values.shape
    step = max(1, _CHUNK // rows)
    parts = (slice(start, start + step) for start in range(0, columns, step))
    return all(np.array_equal(_numbers(one, part), _numbers(other, part)) for part in parts)


def _numbers(own: Blocks, part: slice) -> blocks.Array:
    return blocks.dequantised(Blocks(own.values[:, part], own.scales[:, part]))
