"""The tensors of a GGUF file under Hugging Face's names, in numbers that lose nothing.

What is stored as float16 or bfloat16 stays so. float32 becomes float16 or bfloat16 where that holds every
number exactly, as in files that were made from 16-bit checkpoints. Quantised tensors become float16, whose
rounding is a small part of a quantisation step, unless their numbers lie beyond its normal range: then they
stay float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import gguf as library
import ml_dtypes
import numpy as np
import numpy.typing as npt

from pipeline.models.gguf import rope
from pipeline.models.gguf.header import GgufHeader, GgufTensor
from pipeline.models.gguf.sizes import DIALECTS, Dialect
from pipeline.types import UserError, first_line

Array = npt.NDArray[Any]
Kind = library.GGMLQuantizationType
_FLOATS: dict[Kind, Any] = {
    Kind.F16: np.float16, Kind.BF16: ml_dtypes.bfloat16, Kind.F32: np.float32, Kind.F64: np.float64,
}  # fmt: skip
_BLOCK = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
"""Place in a layer, in Hugging Face's words → in llama.cpp's."""
_LEAST, _MOST = 2.0**-14, 65504.0
"""The smallest and the largest normal number of float16."""


def biases(header: GgufHeader, arch: str) -> dict[str, bool]:
    """The keys of config.json that say which projections have biases."""
    names = {tensor.name for tensor in header.tensors}
    return {
        key: any(name.endswith(f".{_BLOCK[place]}.bias") for place in places for name in names)
        for key, places in DIALECTS[arch].biases
        if key is not None
    }


def frequencies(header: GgufHeader) -> Array | None:
    """`rope_freqs.weight`, where there is one."""
    for tensor in header.tensors:
        if tensor.name == rope.FREQUENCIES:
            return values(tensor).astype(np.float64)
    return None


def arrays(header: GgufHeader, config: Mapping[str, Any]) -> Iterator[tuple[str, Array]]:
    """Each tensor of the Hugging Face model, one after another.

    Args:
        header: of the GGUF.
        config: config.json.

    Raises:
        UserError: one is missing, has another shape or is of a type that cannot be read; nothing uses one.
    """
    dialect = DIALECTS[config["model_type"]]
    stored = {tensor.name: tensor for tensor in header.tensors}
    places = _places(config, dialect)
    for name in stored:
        if name not in places and name != rope.FREQUENCIES:
            raise UserError(
                f"{header.file} holds the tensor {name}, which {config['model_type']} does not use "
                "here; take the safetensors checkpoint of this model"
            )
    for name, (theirs, shape) in places.items():
        if name not in stored and not name.endswith(".bias"):
            raise UserError(f"the GGUF file {header.file} lacks the tensor {name} ({theirs})")
        if name in stored and stored[name].shape != shape:
            raise UserError(
                f"{stored[name].file}: {name} is {list(stored[name].shape)}, its keys say {list(shape)}"
            )
    for name, (theirs, shape) in places.items():
        # llama.cpp adds no bias where there is none.
        array = values(stored[name]) if name in stored else np.zeros(shape, np.float16)
        if dialect.permuted and ".attn_q." in name:
            array = undo_permutation(array, config["num_attention_heads"])
        if dialect.permuted and ".attn_k." in name:
            array = undo_permutation(array, config["num_key_value_heads"])
        yield theirs, np.ascontiguousarray(array)


def _places(config: Mapping[str, Any], dialect: Dialect) -> dict[str, tuple[str, tuple[int, ...]]]:
    """llama.cpp's name → (Hugging Face's, shape)."""
    hidden, inner, words = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads, head = config["num_attention_heads"], config["head_dim"]
    wide, narrow = heads * head, config["num_key_value_heads"] * head
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
        "self_attn.q_proj": (wide, hidden), "self_attn.k_proj": (narrow, hidden),
        "self_attn.v_proj": (narrow, hidden), "self_attn.o_proj": (hidden, wide),
        "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner),
    }  # fmt: skip
    if dialect.head_norms:
        shapes |= {"self_attn.q_norm": (head,), "self_attn.k_norm": (head,)}
    biased = [place for key, places in dialect.biases if key is None or config[key] for place in places]
    places = {
        "token_embd.weight": ("model.embed_tokens.weight", (words, hidden)),
        "output_norm.weight": ("model.norm.weight", (hidden,)),
    }
    if not config["tie_word_embeddings"]:
        places["output.weight"] = ("lm_head.weight", (words, hidden))
    for i in range(config["num_hidden_layers"]):
        for place, shape in shapes.items():
            places[f"blk.{i}.{_BLOCK[place]}.weight"] = (f"model.layers.{i}.{place}.weight", shape)
        for place in biased:
            places[f"blk.{i}.{_BLOCK[place]}.bias"] = (f"model.layers.{i}.{place}.bias", shapes[place][:1])
    return places


def values(tensor: GgufTensor) -> Array:
    """The numbers of a tensor, in the narrowest type that keeps what the file says.

    Raises:
        UserError: its type cannot be read, or one of them is none.
    """
    kind = _FLOATS.get(tensor.kind)
    if kind is not None:
        array: Array = tensor.stored().view(kind)
    else:
        try:
            array = library.dequantize(tensor.stored(), tensor.kind)
        except (NotImplementedError, ValueError) as error:
            raise UserError(
                f"{tensor.file}: {tensor.name} is of type {tensor.kind.name}, which cannot be read "
                f"({first_line(error)})"
            ) from None
    array = array.reshape(tensor.shape)
    if not np.all(np.isfinite(array)):
        raise UserError(f"{tensor.file}: {tensor.name} holds NaN or infinity")
    return _narrowed(array, is_quantised=kind is None)


def _narrowed(array: Array, is_quantised: bool) -> Array:
    """In 16 bits, where that says the same."""
    if array.dtype.itemsize == 2:
        return array
    largest = float(np.abs(array).max())
    if is_quantised and _LEAST <= largest <= _MOST:
        return array.astype(np.float16)
    with np.errstate(over="ignore"):
        for narrow in (np.float16, ml_dtypes.bfloat16, np.float32):
            candidate: Array = array.astype(narrow)
            if narrow is np.float32 or np.array_equal(candidate.astype(array.dtype), array):
                break
    if not np.all(np.isfinite(candidate)):
        raise UserError(f"a weight of {largest:g} is beyond float32")
    return candidate


def undo_permutation(weight: Array, heads: int) -> Array:
    """Rows of Llama's q or k, or their biases, in Hugging Face's order.

    llama.cpp interleaves the two rotary halves of every head; Hugging Face keeps them apart.

    Args:
        weight: [heads · D, …].
        heads: of queries, or of keys.
    """
    rows, *rest = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, *rest).swapaxes(1, 2).reshape(rows, *rest)
