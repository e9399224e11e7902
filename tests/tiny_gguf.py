"""Tiny GGUF files, written from a checkpoint as llama.cpp's converter does."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf as library
import numpy as np
import numpy.typing as npt
from safetensors.torch import load_file

from pipeline.models.config import read_config
from tests import tiny

Array = npt.NDArray[Any]
Kind = library.GGMLQuantizationType
PLACES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up",
}  # fmt: skip
GEMMA_PLACES = {
    **PLACES,
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
ARCHITECTURES = {"gemma3_text": "gemma3", "mistral": "llama"}
"""model_type → GGUF's name of it, where they differ."""


@dataclass
class Tiny:
    """What is written; every field has what the converter would write.

    Attributes:
        arch: the architecture's name; of the checkpoint where it is None.
        keys: further keys; a key with None is left out.
        tensors: further tensors, by llama.cpp's names; None leaves one out.
        kinds: place in a name → how such tensors are stored; others are float32.
        types: token id → llama.cpp's type of it.
        parts: tensors in one file at most; 0 for one file.
    """

    arch: str | None = None
    keys: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Array | None] = field(default_factory=dict)
    kinds: dict[str, Kind] = field(default_factory=dict)
    types: dict[int, int] = field(default_factory=dict)
    parts: int = 0


def write(folder: Path, file: Path, how: Tiny | None = None) -> Path:
    """Writes the checkpoint of `folder`, with its tokenizer, as a GGUF; the first part of a split one."""
    how = how or Tiny()
    config = dict(read_config(folder))
    arch = how.arch or ARCHITECTURES.get(config["model_type"], config["model_type"])
    writer = library.GGUFWriter(file, arch, split_max_tensors=how.parts)
    for key, value in {**_keys(config, arch), **_words(folder, config, how), **how.keys}.items():
        if value is not None:
            _add(writer, key, value)
    for name, array in {**tensors(folder), **how.tensors}.items():
        if array is not None:
            kind = next((kind for place, kind in how.kinds.items() if place in name), Kind.F32)
            exact = kind in (Kind.F32, Kind.F16)
            data = array.astype(np.float16 if kind == Kind.F16 else np.float32)
            writer.add_tensor(name, data if exact else library.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file if file.exists() else next(iter(sorted(file.parent.glob(f"{file.stem}-00001-of-*.gguf"))))


def tensors(folder: Path) -> dict[str, Array]:
    """The tensors of a checkpoint in llama.cpp's names and order of rows."""
    config = dict(read_config(folder))
    found = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        array, model_type = tensor.float().numpy(), config["model_type"]
        if model_type in ("llama", "mistral") and ".q_proj." in name:
            array = permuted(array, config["num_attention_heads"])
        if model_type in ("llama", "mistral") and ".k_proj." in name:
            array = permuted(array, config["num_key_value_heads"])
        if model_type.startswith("gemma") and name.endswith("norm.weight"):
            array = array + np.float32(1)
        places = GEMMA_PLACES if model_type.startswith("gemma") else PLACES
        found[stored_name(name, places)] = np.ascontiguousarray(array)
    scaling = config.get("rope_scaling") or {}
    for name in ("long", "short"):
        if f"{name}_factor" in scaling:
            found[f"rope_factors_{name}.weight"] = np.array(scaling[f"{name}_factor"], np.float32)
    return found


def permuted(weight: Array, heads: int) -> Array:
    """llama.cpp's order of the rows of q and k (conversion/llama.py)."""
    rows, *rest = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, *rest).swapaxes(1, 2).reshape(weight.shape)


def stored_name(name: str, names: dict[str, str]) -> str:
    """llama.cpp's name of a tensor of Hugging Face's."""
    fixed = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    base, suffix = name.rsplit(".", 1)
    if base in fixed:
        return f"{fixed[base]}.{suffix}"
    layer, place = base.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{names[place]}.{suffix}"


def rope_factors(config: dict[str, Any]) -> Array:
    """`rope_freqs.weight` as conversion/llama.py computes it."""
    scaling, head = config["rope_scaling"], config["head_dim"]
    low, high, old = (
        scaling[key] for key in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    factors = []
    for frequency in 1.0 / config["rope_theta"] ** (np.arange(0, head, 2, dtype=np.float32) / head):
        wavelength = 2 * np.pi / frequency
        if wavelength < old / high:
            factors.append(1.0)
        elif wavelength > old / low:
            factors.append(scaling["factor"])
        else:
            smooth = (old / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.array(factors, np.float32)


def _keys(config: dict[str, Any], arch: str) -> dict[str, Any]:
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return {
        f"{arch}.{key}": value
        for key, value in {
            "context_length": config["max_position_embeddings"],
            "embedding_length": config["hidden_size"],
            "block_count": config["num_hidden_layers"],
            "feed_forward_length": config["intermediate_size"],
            "attention.head_count": config["num_attention_heads"],
            "attention.head_count_kv": config["num_key_value_heads"],
            "attention.key_length": head,
            "attention.value_length": head,
            "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
            "rope.freq_base": float(config["rope_theta"]),
            "rope.dimension_count": head,
            "vocab_size": config["vocab_size"],
            **_own_keys(config),
        }.items()
        if value is not None
    }


def _own_keys(config: dict[str, Any]) -> dict[str, Any]:
    """What conversion/gemma.py and conversion/phi.py write beyond the others."""
    window = config.get("sliding_window")
    if config["model_type"] == "phi3":
        original, context = config["original_max_position_embeddings"], config["max_position_embeddings"]
        stretch = max(context / original, 1)
        factor = (1 + np.log(stretch) / np.log(original)) ** 0.5 if config["rope_scaling"] else None
        return {
            "attention.sliding_window": window or 0,
            "attention.key_length": None,
            "attention.value_length": None,
            "rope.scaling.original_context_length": original,
            "rope.scaling.attn_factor": factor and float(factor),
        }
    if not config["model_type"].startswith("gemma"):
        return {}
    caps = {key: config.get(key) for key in ("attn_logit_softcapping", "final_logit_softcapping")}
    return {"attention.sliding_window": window, "rope.dimension_count": None, **caps}


def _words(folder: Path, config: dict[str, Any], how: Tiny) -> dict[str, Any]:
    """The keys of the tokenizer."""
    words = json.loads((folder / "tokenizer.json").read_text())
    ids = {
        **words["model"]["vocab"],
        **{token["content"]: token["id"] for token in words["added_tokens"]},
    }
    special = {token["content"]: token["special"] for token in words["added_tokens"]}
    tokens = {i: token for token, i in ids.items()}
    names = [tokens.get(i, f"[PAD{i}]") for i in range(config["vocab_size"])]
    types = [
        {None: 1 if i in tokens else 5, True: 3, False: 4}[special.get(name)] for i, name in enumerate(names)
    ]
    for i, kind in how.types.items():
        types[i] = kind
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in words["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": names,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def _add(writer: library.GGUFWriter, key: str, value: Any) -> None:
    adders: dict[type, Any] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    adders[type(value)](key, value)


def source(folder: Path, model_type: str = "llama", bos: bool = False, **changes: Any) -> Path:
    """A checkpoint of transformers with a tokenizer."""
    return tiny.tokenizer(
        tiny.checkpoint(folder, model_type, **{"vocab_size": tiny.WORDS, **changes}), bos=bos
    )
