"""config.json of the Hugging Face model that a GGUF file holds."""

from __future__ import annotations

from typing import Any

from pipeline.models.gguf import rope
from pipeline.models.gguf.dialects import DIALECTS
from pipeline.models.gguf.header import GgufHeader
from pipeline.models.gguf.numbers import TAKE, Numbers
from pipeline.types import UserError


def config(header: GgufHeader, arch: str) -> dict[str, Any]:
    """config.json but for its biases and what tensors say of its rope.

    Raises:
        UserError: a number is missing or has another type, or layers differ in size.
    """
    numbers, dialect = Numbers(header.file, header.fields, arch), DIALECTS[arch]
    hidden, heads = numbers.size("embedding_length"), numbers.size("attention.head_count")
    layers = _layers(numbers, header)
    head = numbers.size("attention.key_length", hidden // heads)
    _refuse_odd_heads(numbers, head, dialect.partly_rotated)
    words = len(header.fields["tokenizer.ggml.tokens"])
    if numbers.size("vocab_size", words) != words:
        raise UserError(
            f"{header.file}: {arch}.vocab_size is {numbers.size('vocab_size')}, and it has {words} tokens"
        )
    activation, function = dialect.activation
    whole = {
        "architectures": [dialect.class_name],
        "model_type": dialect.model_type,
        "hidden_size": hidden,
        "intermediate_size": numbers.size("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": numbers.size("attention.head_count_kv", heads),
        "head_dim": head,
        "max_position_embeddings": numbers.size("context_length"),
        "rms_norm_eps": numbers.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": numbers.number("rope.freq_base", 10000.0),
        "vocab_size": words,
        activation: function,
        "tie_word_embeddings": not any(tensor.name == "output.weight" for tensor in header.tensors),
        "use_cache": True,
        "rope_scaling": rope.scaling(header.file, header.fields, arch),
    }
    return {**whole, **(dialect.further(numbers, whole) if dialect.further else {})}


def _layers(numbers: Numbers, header: GgufHeader) -> int:
    """How many layers there are; the tensors must agree, before anything loops over them."""
    layers = numbers.size("block_count")
    present = {t.name.split(".")[1] for t in header.tensors if t.name.startswith("blk.")}
    if layers != len(present):
        raise UserError(
            f"{numbers.file}: {numbers.arch}.block_count is {layers:,}, and it has tensors of {len(present)}"
        )
    return layers


def _refuse_odd_heads(numbers: Numbers, head: int, partly_rotated: bool) -> None:
    """Refuses heads whose keys and values differ in size, or of which rope turns another part than it may."""
    if head % 2:
        raise UserError(f"{numbers.file}: heads have {head} dimensions; rope turns two at a time")
    for key in ("attention.value_length", "rope.dimension_count"):
        value = numbers.size(key, head)
        is_part = partly_rotated and key == "rope.dimension_count" and value < head and value % 2 == 0
        if value != head and not is_part:
            raise UserError(f"{numbers.file}: {numbers.arch}.{key} is {value}, and a head has {head}; {TAKE}")
