"""The tensors of a GGUF file under Hugging Face's names, and in its order of rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.models.gguf import stored
from pipeline.models.gguf.dialects import DIALECTS, Dialect, of_model_type
from pipeline.models.gguf.header import GgufHeader
from pipeline.models.gguf.layers import Layers
from pipeline.models.gguf.stored import Array
from pipeline.types import BASE, UserError


def biases(header: GgufHeader, arch: str) -> dict[str, bool]:
    """The keys of config.json that say which projections have biases."""
    names, dialect = {tensor.name for tensor in header.tensors}, DIALECTS[arch]
    return {
        key: any(name.endswith(f".{dialect.places[place]}.bias") for place in places for name in names)
        for key, places in dialect.biases
        if key is not None
    }


def table(header: GgufHeader, name: str) -> npt.NDArray[np.float64] | None:
    """A tensor that is no weight, where it is there."""
    for tensor in header.tensors:
        if tensor.name == name:
            return stored.values(tensor).astype(np.float64)
    return None


def arrays(header: GgufHeader, config: Mapping[str, Any], layers: Layers) -> Iterator[tuple[str, Array]]:
    """Each tensor of the Hugging Face model that the file has, one after another.

    Args:
        header: of the GGUF.
        config: config.json.
        layers: of the file.

    Raises:
        UserError: one is missing, has another shape or is of a type that cannot be read; nothing uses one.
    """
    dialect = of_model_type(config["model_type"])
    there = {tensor.name: tensor for tensor in header.tensors}
    expected, noughts = places(config, dialect, layers), _noughts(config, layers)
    for name in there:
        if name not in expected and name not in dialect.tables and name not in noughts:
            raise UserError(
                f"{header.file} holds the tensor {name}, which {config['model_type']} does not use "
                f"here{_absence(name, layers)}; take the safetensors checkpoint of this model"
            )
    for name, (theirs, shape) in {**expected, **noughts}.items():
        if name not in there and not name.endswith(".bias"):
            raise UserError(f"the GGUF file {header.file} lacks the tensor {name} ({theirs})")
        if name in there and there[name].shape != shape:
            raise UserError(
                f"{there[name].file}: {name} is {list(there[name].shape)}, its keys say {list(shape)}"
            )
    for name, (theirs, shape) in expected.items():
        # llama.cpp adds no bias where there is none.
        array = stored.values(there[name]) if name in there else np.zeros(shape, np.float16)
        yield theirs, np.ascontiguousarray(_as_theirs(array, theirs, config, dialect))


def _as_theirs(array: Array, name: str, config: Mapping[str, Any], dialect: Dialect) -> Array:
    """A tensor as the Hugging Face checkpoint has it, which calls it `name`."""
    if dialect.norm_offset and name.endswith("norm.weight"):
        array = array.astype(np.float32) - np.float32(dialect.norm_offset)
        return stored.narrowed(array, stored.largest(array), is_quantised=False)
    if dialect.permuted and ".q_proj." in name:
        return undo_permutation(array, config["num_attention_heads"])
    if dialect.permuted and ".k_proj." in name:
        return undo_permutation(array, config["num_key_value_heads"])
    return array


Places = dict[str, tuple[str, tuple[int, ...]]]
"""llama.cpp's name → (Hugging Face's, shape)."""


def places(config: Mapping[str, Any], dialect: Dialect, layers: Layers | None = None) -> Places:
    """llama.cpp's name of each tensor of a model → (Hugging Face's, shape).

    Args:
        config: normalised, or what `sizes.config` and `biases` give.
        dialect: of its architecture.
        layers: of a file; by default whole ones, as many as config.json says.
    """
    numbers = layers.numbers if layers else range(config["num_hidden_layers"])
    absent = layers.absent if layers else BASE
    hidden, words = config["hidden_size"], config["vocab_size"]
    biased = [place for key, places in dialect.biases if key is None or config[key] for place in places]
    named = {
        "token_embd.weight": ("model.embed_tokens.weight", (words, hidden)),
        "output_norm.weight": ("model.norm.weight", (hidden,)),
    }
    if not config["tie_word_embeddings"]:
        named["output.weight"] = ("lm_head.weight", (words, hidden))
    shapes = _shapes(config)
    for i, original in enumerate(numbers):
        for place, theirs in dialect.places.items():
            if (i, _kind(theirs)) in absent:
                continue
            name, shape = f"model.layers.{original}.{place}", shapes[place]
            named[f"blk.{i}.{theirs}.weight"] = (f"{name}.weight", shape)
            if place in biased:
                named[f"blk.{i}.{theirs}.bias"] = (f"{name}.bias", shape[:1])
    return named


def _noughts(config: Mapping[str, Any], layers: Layers) -> Places:
    """The tensors that stand for a skipped sublayer and add nothing: they are there, and not taken."""
    hidden = config["hidden_size"]
    shapes = {f"blk.{i}.attn_{part}.weight": shape for i in layers.hollow
              for part, shape in (("norm", (hidden,)), ("output", (hidden, hidden)))}  # fmt: skip
    for i, width in layers.noughts.items():
        parts = {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width), "norm": (hidden,)}
        for part, shape in parts.items():
            shapes[f"blk.{i}.ffn_{part}.weight"] = shape
            if part != "norm":
                shapes[f"blk.{i}.ffn_{part}.bias"] = shape[:1]
    return {name: ("in the place of a skipped sublayer", shape) for name, shape in shapes.items()}


def _kind(name: str) -> Literal["attn", "mlp"]:
    """The kind of sublayer that llama.cpp's name of a place is of."""
    return "mlp" if name.startswith(("ffn_", "post_ffw_")) else "attn"


def _absence(name: str, layers: Layers) -> str:
    """Why a tensor is not used, where its layer has no such sublayer."""
    match = re.fullmatch(r"blk\.(\d{1,9})\.(\w+)\..*", name)
    if match is None or (int(match[1]), _kind(match[2])) not in layers.absent:
        return ""
    return f": its keys say that layer {match[1]} has no {'MLP' if _kind(match[2]) == 'mlp' else 'attention'}"


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Place in a layer, in Hugging Face's words → shape of its weight."""
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    wide, narrow = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    norms = ("input", "post_attention", "pre_feedforward", "post_feedforward")
    return {
        **{f"{norm}_layernorm": (hidden,) for norm in norms},
        "self_attn.q_norm": (head,), "self_attn.k_norm": (head,),
        "self_attn.q_proj": (wide, hidden), "self_attn.k_proj": (narrow, hidden),
        "self_attn.v_proj": (narrow, hidden), "self_attn.o_proj": (hidden, wide),
        "self_attn.qkv_proj": (wide + 2 * narrow, hidden),
        "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner),
        "mlp.gate_up_proj": (2 * inner, hidden),
    }  # fmt: skip


def undo_permutation(weight: Array, heads: int) -> Array:
    """Rows of Llama's q or k, or their biases, in Hugging Face's order.

    llama.cpp interleaves the two rotary halves of every head; Hugging Face keeps them apart.

    Args:
        weight: [heads · D, …].
        heads: of queries, or of keys.
    """
    rows, *rest = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, *rest).swapaxes(1, 2).reshape(rows, *rest)


def row_order(rows: int, heads: int) -> npt.NDArray[np.intp]:
    """[rows]: for each row of Llama's q or k in llama.cpp's order its place in Hugging Face's.

    The inverse of `undo_permutation`: `weight[row_order(...)]` is llama.cpp's (`permute` of
    conversion/llama.py).

    Args:
        rows: heads · D.
        heads: of queries, or of keys.
    """
    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(rows)
