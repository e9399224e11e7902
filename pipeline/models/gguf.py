"""A GGUF file → an ordinary checkpoint: float16 safetensors, config.json and the tokenizer as published. No torch.

transformers can load a GGUF too, but it adds a BOS although the file says not to, loses the digit splitting of
SmolLM2's tokenizer and wants torch and accelerate; `gguf` (llama.cpp's own package) has the dequantisation and the names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from pipeline import store
from pipeline.types import UserError

_MODEL_TYPES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_LLAMA3_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{%s}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def convert(file: Path, folder: Path) -> None:
    """Writes config.json, generation_config.json, the tokenizer and model.safetensors (float16) into `folder`.

    Raises:
        UserError: no GGUF, or an architecture or a tokenizer that is not known here.
    """
    try:
        reader = gguf.GGUFReader(file)
    except (ValueError, OSError, IndexError) as error:
        raise UserError(f"{file} is not a readable GGUF file ({error})") from None
    fields = {name: field.contents() for name, field in reader.fields.items()}
    arch = fields.get("general.architecture")
    if arch not in _MODEL_TYPES:
        raise UserError(
            f"{file}: GGUF architecture {arch!r} is not read (only {', '.join(_MODEL_TYPES)}); take its safetensors"
        )
    tokenizer = _tokenizer(file, fields)  # refuses before the weights are touched
    config = _config(fields, arch)
    config["tie_word_embeddings"] = not any(tensor.name == "output.weight" for tensor in reader.tensors)
    tensors = _tensors(reader, arch, config)
    with store.atomic(folder / "model.safetensors") as temporary:
        try:
            save_file(tensors, temporary, metadata={"format": "pt"})
        except SafetensorError as error:  # it wraps the system's error, a full disk say
            raise UserError(f"cannot write {folder / 'model.safetensors'}: {error}") from None
    special = _special_tokens(fields)
    with store.atomic(folder / "tokenizer.json") as temporary:
        tokenizer.save(str(temporary))
    store.write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config["max_position_embeddings"],
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
            **special,
            **(
                {"chat_template": fields["tokenizer.chat_template"]}
                if "tokenizer.chat_template" in fields
                else {}
            ),
        },
    )
    ids = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name in config}
    store.write_json(folder / "generation_config.json", ids)
    store.write_json(folder / "config.json", config)


def _config(fields: dict[str, Any], arch: str) -> dict[str, Any]:
    """config.json of the Hugging Face model from the GGUF's metadata."""

    def get(key: str, default: Any = None) -> Any:
        return fields.get(f"{arch}.{key}", default)

    hidden, heads = get("embedding_length"), get("attention.head_count")
    config = {
        "architectures": [
            {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}[arch]
        ],
        "model_type": _MODEL_TYPES[arch],
        "hidden_size": hidden,
        "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv", heads),
        "head_dim": get("attention.key_length", hidden // heads),
        "max_position_embeddings": get("context_length"),
        # the file holds float32 of 1e-05; the shortest decimal that means the same float32 is what was published
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


def _tensors(reader: gguf.GGUFReader, arch: str, config: dict[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """Hugging Face name → float16 array, dequantised."""
    names = gguf.get_tensor_name_map(_arch(arch), config["num_hidden_layers"])
    theirs = {tensor.name: tensor for tensor in reader.tensors}
    found: dict[str, npt.NDArray[Any]] = {}
    for ours in _expected_names(config):
        base, suffix = ours.rsplit(".", 1)
        name = f"{names.get_name(base)}.{suffix}"
        if name not in theirs:
            if suffix == "bias":
                continue
            raise UserError(f"the GGUF file lacks the tensor {name} ({ours})")
        tensor = theirs[name]
        array = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(
            [int(d) for d in reversed(tensor.shape)]
        )
        if arch == "llama" and base.endswith(("q_proj", "k_proj")):
            heads = (
                config["num_attention_heads"] if base.endswith("q_proj") else config["num_key_value_heads"]
            )
            array = _undo_permutation(array, heads)
        found[ours] = np.ascontiguousarray(array, np.float16)
    return found


def _arch(arch: str) -> gguf.MODEL_ARCH:
    return next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)


def _expected_names(config: dict[str, Any]) -> list[str]:
    names = ["model.embed_tokens.weight", "model.norm.weight"] + (
        [] if config["tie_word_embeddings"] else ["lm_head.weight"]
    )
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        names += [f"{layer}.input_layernorm.weight", f"{layer}.post_attention_layernorm.weight"]
        names += [f"{layer}.self_attn.{p}_proj.weight" for p in "qkvo"] + [
            f"{layer}.mlp.{p}_proj.weight" for p in ("gate", "up", "down")
        ]
        names += [f"{layer}.self_attn.{p}_proj.bias" for p in "qkv"] * (config["model_type"] == "qwen2")
        names += [f"{layer}.self_attn.{p}_norm.weight" for p in "qk"] * (config["model_type"] == "qwen3")
    return names


def _undo_permutation(weight: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """llama.cpp interleaves the two rotary halves of every head of Llama's q and k; Hugging Face keeps them apart."""
    out, width = weight.shape
    return weight.reshape(heads, out // heads // 2, 2, width).swapaxes(1, 2).reshape(out, width)


def _tokenizer(file: Path, fields: dict[str, Any]) -> Tokenizer:
    """The byte-level BPE tokenizer as its authors published it, from the GGUF's vocabulary, merges and `pre` name."""
    if fields.get("tokenizer.ggml.model") != "gpt2":
        raise UserError(
            f"{file}: only byte-level BPE tokenizers are read from GGUF; take the safetensors checkpoint of this model"
        )
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    known: dict[str, pre_tokenizers.PreTokenizer] = {
        "smollm": pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
        "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
        "llama-bpe": pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(_LLAMA3_SPLIT % "1,3"), "isolated"), level]
        ),
        "qwen2": pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(_LLAMA3_SPLIT % "1"), "isolated"), level]
        ),
    }
    pre = fields.get("tokenizer.ggml.pre")
    if pre not in known:
        raise UserError(
            f"{file}: pre-tokenizer {pre!r} is not known here ({', '.join(known)} are); take the safetensors checkpoint"
        )
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(
        models.BPE({token: i for i, token in enumerate(tokens)}, merges, ignore_merges=pre == "llama-bpe")
    )
    tokenizer.pre_tokenizer = known[pre]
    tokenizer.decoder = decoders.ByteLevel()
    control = [
        token
        for token, kind in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
        if kind in (3, 4)
    ]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    if fields.get("tokenizer.ggml.add_bos_token"):
        bos = tokens[fields["tokenizer.ggml.bos_token_id"]]
        template = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokens.index(bos))]
        )
        tokenizer.post_processor = template
    else:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def _special_tokens(fields: dict[str, Any]) -> dict[str, str]:
    """bos_token, eos_token, … as tokenizer_config.json has them."""
    ids = {
        name: fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "unknown", "padding")
    }
    keys = {"unknown": "unk", "padding": "pad"}
    return {
        f"{keys.get(n, n)}_token": fields["tokenizer.ggml.tokens"][i] for n, i in ids.items() if i is not None
    }
