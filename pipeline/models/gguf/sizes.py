"""config.json of the Hugging Face model that a GGUF file holds."""

from __future__ import annotations

from typing import Any

from pipeline.models.gguf import rope
from pipeline.models.gguf.dialects import DIALECTS
from pipeline.models.gguf.header import GgufHeader
from pipeline.models.gguf.layers import Layers
from pipeline.models.gguf.numbers import TAKE, Numbers
from pipeline.types import UserError


def config(header: GgufHeader, arch: str, layers: Layers) -> dict[str, Any]:
    """config.json of the layers in the file, but for its biases and what tensors say of its rope.

    Args:
        header: of the file.
        arch: its architecture.
        layers: of the file.

    Raises:
        UserError: a number is missing or has another type, or layers differ in size.
    """
    numbers, dialect = Numbers(header.file, header.fields, arch), DIALECTS[arch]
    hidden = numbers.size("embedding_length")
    head = numbers.size("attention.key_length", hidden // layers.heads)
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
        "intermediate_size": layers.width,
        "num_hidden_layers": len(layers.numbers),
        "num_attention_heads": layers.heads,
        "num_key_value_heads": layers.groups,
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


def _refuse_odd_heads(numbers: Numbers, head: int, partly_rotated: bool) -> None:
    """Refuses heads whose keys and values differ in size, or of which rope turns another part than it may."""
    if head % 2:
        raise UserError(f"{numbers.file}: heads have {head} dimensions; rope turns two at a time")
    for key in ("attention.value_length", "rope.dimension_count"):
        value = numbers.size(key, head)
        is_part = partly_rotated and key == "rope.dimension_count" and value < head and value % 2 == 0
        if value != head and not is_part:
            raise UserError(f"{numbers.file}: {numbers.arch}.{key} is {value}, and a head has {head}; {TAKE}")
