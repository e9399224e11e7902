"""GGUF files written from known checkpoints: what comes back is the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import gguf as library
import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from pipeline.models import checkpoint, gguf
from pipeline.models.config import read_config
from pipeline.types import UserError
from tests import tiny

# Token ids of the SmolLM2 tokenizer as its authors publish it: digits one by one, byte-level, no BOS.
PUBLISHED = {
    "The capital of France is": [504, 3575, 282, 4649, 314],
    "The year 2024": [504, 713, 216, 34, 32, 34, 36],
    "<|im_start|>user\nhi<|im_end|>": [1, 4093, 198, 6004, 2],
}
ODD = [
    "naïve café — 北京 🙂\tx  y\r\n",
    "  leading",
    "3.14159e-10",
    "a\u00a0b",
    "''quotes''",
    "\x00\x7f",
    "مرحبا",
    "1234567890",
]
PLACES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def test_the_demo_is_what_its_authors_published(demo_root: Path) -> None:
    folder = demo_root / "graphs" / checkpoint.DEMO_MODEL
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text, ids in PUBLISHED.items():
        assert tokenizer(text).input_ids == ids
    for text in ODD:
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert set(tokenizer("x")) == {"input_ids", "attention_mask"}  # what generate() takes
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert not (folder / "tokenizer.model").exists()


@pytest.mark.slow
def test_tensors_of_the_demo_are_those_of_the_gguf_library(demo_root: Path) -> None:
    """The conversion keeps values and undoes llama.cpp's permutation."""
    tensors = load_file(demo_root / "graphs" / checkpoint.DEMO_MODEL / "model.safetensors")
    stored = {t.name: t for t in library.GGUFReader(checkpoint.demo_gguf()).tensors}

    def values(name: str) -> np.ndarray:
        return library.dequantize(stored[name].data, stored[name].tensor_type).astype(np.float16)

    for name, stored_name in {
        "model.layers.3.mlp.down_proj.weight": "blk.3.ffn_down.weight",
        "model.norm.weight": "output_norm.weight",
    }.items():
        np.testing.assert_array_equal(tensors[name].reshape(values(stored_name).shape), values(stored_name))
    q, converted = values("blk.0.attn_q.weight"), tensors["model.layers.0.self_attn.q_proj.weight"]
    assert not np.array_equal(converted, q) and np.array_equal(np.sort(converted, 0), np.sort(q, 0))
    # Pairs (even, odd) of a head of 64 become its halves.
    np.testing.assert_array_equal(converted[[0, 32, 1, 33]], q[:4])


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of the rows of q and k (convert_hf_to_gguf.py)."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def written(folder: Path, file: Path, **changes: object) -> Path:
    """The checkpoint of `folder` as a GGUF file of float32."""
    config = json.loads((folder / "config.json").read_text())
    words = json.loads((folder / "tokenizer.json").read_text())
    arch = config["model_type"]
    writer = library.GGUFWriter(file, str(changes.get("arch", arch)))
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_tokenizer_model(str(changes.get("tokenizer", "gpt2")))
    writer.add_tokenizer_pre(str(changes.get("pre", "gpt-2")))
    vocabulary = sorted(words["model"]["vocab"], key=lambda token: words["model"]["vocab"][token])
    special = {token["content"] for token in words["added_tokens"]}
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token in special else 1 for token in vocabulary])
    writer.add_token_merges([" ".join(merge) for merge in words["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(bool(changes.get("bos", False)))
    for name, array in load_file(folder / "model.safetensors").items():
        if arch == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            array = permuted(array, heads)
        if name != changes.get("without"):
            writer.add_tensor(stored_name(name), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def stored_name(name: str) -> str:
    fixed = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    base, suffix = name.rsplit(".", 1)
    if base in fixed:
        return f"{fixed[base]}.{suffix}"
    layer, place = base.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{PLACES[place]}.{suffix}"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tiny.tokenizer(tiny.checkpoint(tmp_path / "source", vocab_size=tiny.WORDS))


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_comes_back(model_type: str, tied: bool, tmp_path: Path) -> None:
    source = tiny.checkpoint(tmp_path / "s", model_type, vocab_size=tiny.WORDS, tie_word_embeddings=tied)
    tiny.tokenizer(source)
    gguf.convert(written(source, tmp_path / "m.gguf"), tmp_path / "converted")
    expected, tensors = (
        load_file(folder / "model.safetensors") for folder in (source, tmp_path / "converted")
    )
    assert set(tensors) == set(expected)
    for name, array in tensors.items():
        np.testing.assert_array_equal(array, expected[name].astype(np.float16), err_msg=name)
    one, other = (read_config(folder) for folder in (source, tmp_path / "converted"))
    keys = (
        "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "vocab_size", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_theta",
        "tie_word_embeddings",
    )  # fmt: skip
    assert {key: other[key] for key in keys} == {key: one[key] for key in keys}
    assert (other["bos_token_id"], other["eos_token_id"]) == (1, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "mamba"}, "GGUF architecture 'mamba' is not read"),
        ({"without": "model.layers.1.mlp.up_proj.weight"}, r"lacks the tensor blk\.1\.ffn_up\.weight"),
        ({"tokenizer": "llama"}, "only byte-level BPE"),
        ({"pre": "nobodys"}, "pre-tokenizer 'nobodys' is not known"),
    ],
)
def test_what_is_not_known_is_refused(
    changes: dict[str, str], message: str, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        gguf.convert(written(source, tmp_path / "m.gguf", **changes), tmp_path / "converted")
    assert "\n" not in str(caught.value) and not list((tmp_path / "converted").glob("*.safetensors"))


def test_what_is_no_gguf_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"hello, I am not a GGUF file at all, whatever my name says")
    with pytest.raises(UserError, match="is not a readable GGUF file") as caught:
        gguf.convert(tmp_path / "m.gguf", tmp_path)
    assert "\n" not in str(caught.value)
