"""Tiny GGUF files of pruned models: llama.cpp's architecture `deci`, written as its converter would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.models.config import read_config
from pipeline.types import BASE, SkipSet
from tests import tiny_gguf
from tests.tiny_gguf import Tiny

ROWS = 32
"""Of a feed-forward of noughts."""


def of(folder: Path, skip: SkipSet, noughts: bool = True, originals: bool = True) -> Tiny:
    """How a checkpoint of Llama's form is written without sublayers.

    Args:
        folder: of the whole checkpoint.
        skip: what is left out. Layers that are wholly gone are numbered away.
        noughts: a skipped MLP is a feed-forward of noughts; else its width is 0.
        originals: the file says which layers they were.
    """
    config = dict(read_config(folder))
    total = config["num_hidden_layers"]
    kept = [i for i in range(total) if not ((i, "attn") in skip and (i, "mlp") in skip)]
    tensors: dict[str, Any] = {}
    for name, array in tiny_gguf.tensors(folder).items():
        head, _, rest = name.partition(".")
        if head != "blk":
            continue
        number, place = rest.split(".", 1)
        tensors[name] = tensors.get(name)  # what another layer is written as stays
        kind = "mlp" if place.startswith("ffn_") else "attn"
        if int(number) not in kept or ((int(number), kind) in skip and not (kind == "mlp" and noughts)):
            continue
        target = f"blk.{kept.index(int(number))}.{place}"
        tensors[target] = nought(array, place) if (int(number), kind) in skip else array
    heads, groups, width = (
        config[key] for key in ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    )
    first = [0 if (i, "attn") in skip else heads for i in kept]
    if not first[0]:  # llama.cpp takes the size of a head from the first layer: a map of noughts
        first[0], hidden = heads, config["hidden_size"]
        tensors["blk.0.attn_norm.weight"] = np.ones(hidden, np.float32)
        tensors["blk.0.attn_output.weight"] = np.zeros((hidden, hidden), np.float32)
    keys: dict[str, Any] = {
        "deci.block_count": len(kept),
        "deci.attention.head_count": first,
        "deci.attention.head_count_kv": [0 if (i, "attn") in skip else groups for i in kept],
        "deci.feed_forward_length": [(ROWS if noughts else 0) if (i, "mlp") in skip else width for i in kept],
    }
    if originals:
        keys |= {
            "skip_pipeline.num_layers": total,
            "skip_pipeline.layers": kept,
            "skip_pipeline.variant": skip.name if skip != BASE else "base",
        }
    return Tiny(arch="deci", keys=keys, tensors=tensors)


def nought(array: Any, place: str) -> Any:
    """A tensor of a feed-forward of 32 rows of noughts, in the place of one of a wider."""
    if place == "ffn_norm.weight":
        return array
    if place.endswith(".bias"):
        return np.zeros(ROWS if not place.startswith("ffn_down") else len(array), np.float32)
    shape = (array.shape[0], ROWS) if place.startswith("ffn_down") else (ROWS, array.shape[1])
    return np.zeros(shape, np.float32)
