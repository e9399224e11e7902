"""What llama.cpp would take a file's keys for, held to the model that was written."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import gguf as library
import numpy as np

from pipeline.models import rope
from pipeline.models.config import SLIDING, Config, normalised
from pipeline.models.gguf import convert
from pipeline.models.gguf.header import GgufHeader, GgufTensor
from pipeline.types import UserError

_KEYS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "max_position_embeddings", "rms_norm_eps", "vocab_size", "tie_word_embeddings", "rope_theta",
    "partial_rotary_factor", "attention_bias", "mlp_bias", "query_pre_attn_scalar", "attn_logit_softcapping",
    "final_logit_softcapping", "rope_local_base_freq",
)  # fmt: skip
"""Of config.json: what the model computes depends on them."""
_CLOSE = 2e-6
"""Relative: the file holds float32."""


def difference(header: GgufHeader, expected: Config) -> str | None:
    """The first key of config.json of which the file says something else than is meant.

    Args:
        header: of a file of an architecture whose layers are alike.
        expected: config.json of what was written.

    Returns:
        In words; None where they agree.
    """
    try:
        config = normalised(convert.config_of(header), header.file)
    except UserError as error:
        return str(error)
    for key in (*_KEYS, *_windows(expected)):
        if key in config and key in expected and not _equal(config[key], expected[key]):
            return f"{key} would be {config[key]!r:.60} in llama.cpp, and is {expected[key]!r:.60}"
    return None if _same_rope(config, expected) else "its rope would be another in llama.cpp"


def unwritten(keys: Mapping[str, Any], names: Collection[str], words: int) -> GgufHeader:
    """The header of a file before it is written, for `difference`; no tokens but their number.

    Args:
        keys: of the architecture.
        names: of its tensors.
        words: of its vocabulary.
    """
    file = Path("the file")
    tokens = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [str(i) for i in range(words)],
        "tokenizer.ggml.merges": [],
    }
    arch = next(iter(keys)).partition(".")[0]
    kind = library.GGMLQuantizationType.F32
    tensors = tuple(GgufTensor(name, file, kind, (), 0, 0) for name in names)
    return GgufHeader(file, {"general.architecture": arch, **keys, **tokens}, tensors)


def _windows(expected: Config) -> tuple[str, ...]:
    """The keys that say which layers have which window, where llama.cpp's architecture has windows."""
    if not expected["model_type"].startswith("gemma"):
        return ()
    return ("layer_types", "sliding_window") if SLIDING in expected["layer_types"] else ("layer_types",)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, int | float) and isinstance(b, int | float):
        return math.isclose(a, b, rel_tol=_CLOSE)
    return bool(a == b)


def _same_rope(config: Config, expected: Config) -> bool:
    """Whether both turn by the same angles; a table in a file that is not yet there is passed over."""
    one, other = rope.rope(config), rope.rope(expected)
    pairs = ((one.frequencies, other.frequencies), (one.long_frequencies, other.long_frequencies))
    return math.isclose(one.factor, other.factor, rel_tol=_CLOSE) and all(
        a is b or (a is not None and b is not None and np.allclose(a, b, rtol=_CLOSE, atol=0))
        for a, b in pairs
    )
