"""A GGUF file → an ordinary checkpoint: float16 safetensors, config.json, the tokenizer. No torch.

transformers can load a GGUF too, but it adds a BOS although the file says not to, loses the digit splitting
of SmolLM2's tokenizer, and needs torch and accelerate. `gguf` (llama.cpp's own package) dequantises and knows
the names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import save_file

from pipeline import store
from pipeline.models import gguf_tokenizer
from pipeline.types import UserError, first_line

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Dialect:
    """How an architecture's GGUF differs from the Hugging Face checkpoint.

    Attributes:
        class_name: of the Hugging Face model.
        permuted: the rows of q and k are in llama.cpp's order.
        biases: q, k and v may have biases.
        head_norms: query and key heads have norms.
    """

    class_name: str
    permuted: bool = False
    biases: bool = False
    head_norms: bool = False


DIALECTS = {
    "llama": Dialect("LlamaForCausalLM", permuted=True),
    "qwen2": Dialect("Qwen2ForCausalLM", biases=True),
    "qwen3": Dialect("Qwen3ForCausalLM", head_norms=True),
}
"""By architecture, which has the same name in a GGUF and as model_type."""


def convert(file: Path, folder: Path) -> None:
    """Writes config.json, generation_config.json, the tokenizer and float16 model.safetensors into `folder`.

    Raises:
        UserError: no GGUF, or an architecture or a tokenizer that is not known here.
    """
    try:
        reader = gguf.GGUFReader(file)
    except (ValueError, OSError, IndexError) as error:
        raise UserError(f"{file} is not a readable GGUF file ({first_line(error)})") from None
    fields = {name: field.contents() for name, field in reader.fields.items()}
    arch = fields.get("general.architecture")
    if arch not in DIALECTS:
        raise UserError(
            f"{file}: GGUF architecture {arch!r} is not read (only {', '.join(DIALECTS)}); "
            "take its safetensors"
        )
    words = gguf_tokenizer.tokenizer(file, fields)  # refuses before the weights are read
    config = _config(fields, arch)
    config["tie_word_embeddings"] = not any(tensor.name == "output.weight" for tensor in reader.tensors)
    _save(_tensors(reader, arch, config), folder / "model.safetensors")
    with store.atomic(folder / "tokenizer.json") as temporary:
        words.save(str(temporary))
    settings = gguf_tokenizer.settings(fields, config["max_position_embeddings"])
    store.write_json(folder / "tokenizer_config.json", settings)
    ids = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name in config}
    store.write_json(folder / "generation_config.json", ids)
    store.write_json(folder / "config.json", config)


def _save(tensors: dict[str, Array], path: Path) -> None:
    with store.atomic(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={"format": "pt"})
        except SafetensorError as error:  # it wraps the system's error, a full disk say
            raise UserError(f"cannot write {path}: {first_line(error)}") from None


def _config(fields: dict[str, Any], arch: str) -> dict[str, Any]:
    """config.json of the Hugging Face model from the GGUF's metadata."""

    def get(key: str, default: Any = None) -> Any:
        return fields.get(f"{arch}.{key}", default)

    hidden, heads = get("embedding_length"), get("attention.head_count")
    config = {
        "architectures": [DIALECTS[arch].class_name],
        "model_type": arch,
        "hidden_size": hidden,
        "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv", heads),
        "head_dim": get("attention.key_length", hidden // heads),
        "max_position_embeddings": get("context_length"),
        # The file holds float32 of 1e-05; the shortest decimal that means the same float32 is what was
        # published.
        "rms_norm_eps": float(str(np.float32(get("attention.layer_norm_rms_epsilon")))),
        "rope_theta": get("rope.freq_base", 10000.0),
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_act": "silu",
        "torch_dtype": "float16",
        "use_cache": True,
    }
    for name, key in (("bos", "bos_token_id"), ("eos", "eos_token_id"), ("padding", "pad_token_id")):
        if (value := fields.get(f"tokenizer.ggml.{name}_token_id")) is not None:
            config[key] = value
    return config


def _tensors(reader: gguf.GGUFReader, arch: str, config: dict[str, Any]) -> dict[str, Array]:
    """Hugging Face name → float16 array, dequantised."""
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(kind, config["num_hidden_layers"])
    stored = {tensor.name: tensor for tensor in reader.tensors}
    arrays: dict[str, Array] = {}
    for name in _expected_names(config, DIALECTS[arch]):
        base, suffix = name.rsplit(".", 1)
        stored_name = f"{names.get_name(base)}.{suffix}"
        if stored_name not in stored:
            if suffix == "bias":
                continue
            raise UserError(f"the GGUF file lacks the tensor {stored_name} ({name})")
        array = _dequantised(stored[stored_name])
        if DIALECTS[arch].permuted and base.endswith(("q_proj", "k_proj")):
            key = "num_attention_heads" if base.endswith("q_proj") else "num_key_value_heads"
            array = undo_permutation(array, config[key])
        arrays[name] = np.ascontiguousarray(array, np.float16)
    return arrays


def _dequantised(tensor: gguf.ReaderTensor) -> Array:
    shape = [int(size) for size in reversed(tensor.shape)]
    array: Array = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
    return array


def _expected_names(config: dict[str, Any], dialect: Dialect) -> list[str]:
    names = ["model.embed_tokens.weight", "model.norm.weight"]
    names += [] if config["tie_word_embeddings"] else ["lm_head.weight"]
    parts = ["input_layernorm.weight", "post_attention_layernorm.weight"]
    parts += [f"self_attn.{part}_proj.weight" for part in "qkvo"]
    parts += [f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
    parts += [f"self_attn.{part}_proj.bias" for part in "qkv"] if dialect.biases else []
    parts += [f"self_attn.{part}_norm.weight" for part in "qk"] if dialect.head_norms else []
    return names + [f"model.layers.{i}.{part}" for i in range(config["num_hidden_layers"]) for part in parts]


def undo_permutation(weight: Array, heads: int) -> Array:
    """Rows of Llama's q or k in Hugging Face's order.

    llama.cpp interleaves the two rotary halves of every head; Hugging Face keeps them apart.

    Args:
        weight: [heads · D, C].
        heads: of queries, or of keys.
    """
    rows, width = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)
