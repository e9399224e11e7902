"""config.json of the Hugging Face model that a GGUF file holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.models.gguf import rope
from pipeline.models.gguf.header import GgufHeader
from pipeline.types import UserError

_TAKE = "take the safetensors checkpoint of this model"


@dataclass(frozen=True, slots=True)
class Dialect:
    """How an architecture's GGUF differs from the Hugging Face checkpoint.

    Attributes:
        class_name: of the Hugging Face model.
        permuted: the rows of q and k, and their biases, are in llama.cpp's order.
        head_norms: query and key heads have norms.
        biases: places of a layer that may have biases, each with the key of config.json that says so; None
            where they always have one.
    """

    class_name: str
    permuted: bool = False
    head_norms: bool = False
    biases: tuple[tuple[str | None, tuple[str, ...]], ...] = ()


_QKVO = tuple(f"self_attn.{part}_proj" for part in "qkvo")
_MLP = tuple(f"mlp.{part}_proj" for part in ("gate", "up", "down"))
DIALECTS = {
    "llama": Dialect(
        "LlamaForCausalLM", permuted=True, biases=(("attention_bias", _QKVO), ("mlp_bias", _MLP))
    ),
    "qwen2": Dialect("Qwen2ForCausalLM", biases=((None, _QKVO[:3]),)),
    "qwen3": Dialect("Qwen3ForCausalLM", head_norms=True, biases=(("attention_bias", _QKVO),)),
}
"""By architecture, which has the same name in a GGUF and as model_type."""


def config(header: GgufHeader, arch: str) -> dict[str, Any]:
    """config.json but for its rope scaling and its biases.

    Raises:
        UserError: a number is missing or has another type, or layers differ in size.
    """
    reader = _Numbers(header.file, header.fields, arch)
    hidden, heads = reader.size("embedding_length"), reader.size("attention.head_count")
    layers = _layers(reader, header)
    head = reader.size("attention.key_length", hidden // heads)
    _refuse_odd_heads(reader, head)
    words = len(header.fields["tokenizer.ggml.tokens"])
    if reader.size("vocab_size", words) != words:
        raise UserError(
            f"{header.file}: {arch}.vocab_size is {reader.size('vocab_size')}, and it has {words} tokens"
        )
    return {
        "architectures": [DIALECTS[arch].class_name],
        "model_type": arch,
        "hidden_size": hidden,
        "intermediate_size": reader.size("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": reader.size("attention.head_count_kv", heads),
        "head_dim": head,
        "max_position_embeddings": reader.size("context_length"),
        # The file holds float32 of 1e-05; the shortest decimal that means the same float32 is what was
        # published.
        "rms_norm_eps": float(str(np.float32(reader.number("attention.layer_norm_rms_epsilon")))),
        "rope_theta": reader.number("rope.freq_base", 10000.0),
        "vocab_size": words,
        "hidden_act": "silu",
        "tie_word_embeddings": not any(tensor.name == "output.weight" for tensor in header.tensors),
        "use_cache": True,
        "rope_scaling": rope.scaling(header.file, header.fields, arch),
    }


def _layers(reader: _Numbers, header: GgufHeader) -> int:
    """How many layers there are; the tensors must agree, before anything loops over them."""
    layers = reader.size("block_count")
    present = {t.name.split(".")[1] for t in header.tensors if t.name.startswith("blk.")}
    if layers != len(present):
        raise UserError(
            f"{reader.file}: {reader.arch}.block_count is {layers:,}, and it has tensors of {len(present)}"
        )
    return layers


def _refuse_odd_heads(reader: _Numbers, head: int) -> None:
    """Refuses heads whose keys and values differ in size, or that are rotated in part."""
    if head % 2:
        raise UserError(f"{reader.file}: heads have {head} dimensions; rope turns two at a time")
    for key in ("attention.value_length", "rope.dimension_count"):
        if reader.size(key, head) != head:
            raise UserError(
                f"{reader.file}: {reader.arch}.{key} is {reader.size(key)}, and a head has {head}; {_TAKE}"
            )


@dataclass(frozen=True, slots=True)
class _Numbers:
    """Numbers among the keys of an architecture."""

    file: Path
    fields: Mapping[str, Any]
    arch: str

    def size(self, name: str, default: int | None = None) -> int:
        """A positive integer; a list of one a layer must hold one size."""
        key = f"{self.arch}.{name}"
        value = self.fields.get(key, default)
        if isinstance(value, list) and value and all(one == value[0] for one in value):
            value = value[0]
        if isinstance(value, list):
            raise UserError(f"{self.file}: {key}: layers differ, {value!r:.60}; {_TAKE}")
        if value is None:
            raise UserError(f"{self.file} lacks the key {key}")
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 2**31:
            raise UserError(f"{self.file}: {key} is {value!r:.60}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive number."""
        key = f"{self.arch}.{name}"
        value = self.fields.get(key, default)
        if value is None:
            raise UserError(f"{self.file} lacks the key {key}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < np.inf:
            raise UserError(f"{self.file}: {key} is {value!r:.60}")
        return float(value)
