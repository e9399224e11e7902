"""A GGUF file that was written from a checkpoint gives the same model back, in float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.models import demo
from pipeline.models.config import read_config
from pipeline.models.gguf.convert import convert
from pipeline.types import UserError
from tests import tiny, tiny_gguf
from tests.tiny_gguf import Kind, Tiny

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
LLAMA3 = {**tiny.LLAMA3, "factor": 32.0}


def logits(folder: Path) -> Any:
    """[T, V] of transformers, in float32, over 200 tokens."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    words = model.config.vocab_size
    ids = torch.tensor([[(7 * i * i + 3 * i + 5) % (words - 3) + 3 for i in range(200)]])
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits[0].double().numpy()


def distance(one: Path, other: Path) -> float:
    """max|a − b| / rms(b)."""
    a, b = logits(one), logits(other)
    return float(np.abs(a - b).max() / np.sqrt((b**2).mean()))


def converted(source: Path, how: Tiny | None = None) -> Path:
    """The checkpoint of a folder, written as a GGUF and made a checkpoint again."""
    folder = source.parent / "converted"
    convert(tiny_gguf.write(source, source.parent / "m.gguf", how), folder)
    return folder


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_comes_back(model_type: str, tied: bool, tmp_path: Path) -> None:
    source = tiny_gguf.source(tmp_path / "s", model_type, tie_word_embeddings=tied)
    target = converted(source)
    expected, tensors = (load_file(folder / "model.safetensors") for folder in (source, target))
    assert set(tensors) == set(expected)
    for name, tensor in tensors.items():
        assert torch.equal(tensor.float(), expected[name]), name
    one, other = (read_config(folder) for folder in (source, target))
    assert set(one) <= set(other) | {"attention_dropout", "initializer_range", "pretraining_tp", "dtype"} | {
        key for key in one if key.startswith("transformers")
    }
    assert {key for key in set(one) & set(other) if one[key] != other[key]} <= {"pad_token_id"}


@pytest.mark.parametrize(
    ("model_type", "changes", "keys"),
    [
        ("llama", {"attention_bias": True}, {}),
        ("llama", {"mlp_bias": True}, {}),
        ("llama", {"attention_bias": True, "mlp_bias": True}, {}),
        ("qwen3", {"attention_bias": True}, {}),
        (
            "llama",
            {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
        ),
        (  # llama.cpp takes a factor without a type as linear
            "llama",
            {"rope_scaling": {"rope_type": "linear", "factor": 2.5}},
            {"llama.rope.scaling.factor": 2.5},
        ),
        (
            "llama",
            {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
            {"llama.rope.scale_linear": 8.0},
        ),
        ("llama", {}, {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 8.0}),
        (
            "qwen2",
            {
                "rope_scaling": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 64,
                    "beta_fast": 16.0,
                }
            },
            {
                "qwen2.rope.scaling.type": "yarn",
                "qwen2.rope.scaling.factor": 4.0,
                "qwen2.rope.scaling.original_context_length": 64,
                "qwen2.rope.scaling.yarn_beta_fast": 16.0,
            },
        ),
    ],
)
def test_what_changes_the_model_arrives(
    model_type: str, changes: dict[str, Any], keys: dict[str, Any], tmp_path: Path
) -> None:
    source = tiny_gguf.source(tmp_path / "s", model_type, **changes)
    assert distance(converted(source, Tiny(keys=keys)), source) < 1e-4


def test_the_scaling_of_llama_3_1_comes_back_from_its_tensor(tmp_path: Path) -> None:
    source = tiny_gguf.source(tmp_path / "s", rope_scaling=dict(LLAMA3), max_position_embeddings=1024)
    factors = tiny_gguf.rope_factors(read_config(source))
    target = converted(source, Tiny(tensors={"rope_freqs.weight": factors}))
    assert distance(target, source) < 1e-4
    assert read_config(target)["rope_scaling"] == LLAMA3


def test_a_split_model_is_read_whole_from_any_part(tmp_path: Path) -> None:
    source = tiny_gguf.source(tmp_path / "s", tie_word_embeddings=False)
    first = tiny_gguf.write(source, tmp_path / "m.gguf", Tiny(parts=5))
    parts = sorted(tmp_path.glob("m-*.gguf"))
    assert first == parts[0] and len(parts) > 2
    for part in parts:
        folder = tmp_path / f"of-{part.stem}"
        convert(part, folder)
        assert distance(folder, source) < 1e-4
        assert "lm_head.weight" in load_file(folder / "model.safetensors")


@pytest.mark.parametrize("missing", [0, 1, -1])
def test_a_missing_part_is_named(missing: int, tmp_path: Path) -> None:
    source = tiny_gguf.source(tmp_path / "s")
    tiny_gguf.write(source, tmp_path / "m.gguf", Tiny(parts=5))
    parts = sorted(tmp_path.glob("m-*.gguf"))
    lost = parts.pop(missing)
    lost.unlink()
    with pytest.raises(UserError, match=rf"{lost.name} is missing"):
        convert(parts[0], tmp_path / "c")
    alone = parts[0].rename(tmp_path / "alone.gguf")
    with pytest.raises(UserError, match=r"split\.count"):
        convert(alone, tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("kind", "limit"),
    [
        (Kind.F32, 1e-4),
        (Kind.F16, 0.02),
        (Kind.BF16, 0.2),
        (Kind.Q8_0, 0.2),
    ],
)
def test_precision_is_what_the_file_has(kind: Kind, limit: float, tmp_path: Path) -> None:
    source = tiny_gguf.source(tmp_path / "s")
    target = converted(source, Tiny(kinds={".weight": kind} if kind != Kind.F32 else {}))
    assert distance(target, source) < limit


def test_what_is_not_read_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = tiny_gguf.source(tmp_path / "s")
    for how, message in [
        (Tiny(arch="mamba"), "GGUF architecture 'mamba' is not read"),
        (Tiny(tensors={"blk.1.ffn_up.weight": None}), r"lacks the tensor blk\.1\.ffn_up\.weight"),
        (Tiny(keys={"tokenizer.ggml.model": "t5"}), "tokenizer.ggml.model is 't5'; only"),
        (Tiny(keys={"tokenizer.ggml.pre": "nobodys"}), "pre-tokenizer 'nobodys' is not known"),
        (Tiny(tensors={"rope_freqs.weight": np.arange(1.0, 17.0)}), "no scaling of Llama 3.1 gives"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            converted(source, how)
        assert "\n" not in str(caught.value) and not (tmp_path / "converted").exists()


def test_the_demo_is_what_its_authors_published(demo_root: Path) -> None:
    folder = demo_root / "graphs" / demo.MODEL
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
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [2, 0]
    assert not (folder / "tokenizer.model").exists()


@pytest.mark.slow
def test_tensors_of_the_demo_are_those_of_the_gguf_library(demo_root: Path) -> None:
    """The conversion keeps values and undoes llama.cpp's permutation."""
    import gguf as library

    tensors = load_file(demo_root / "graphs" / demo.MODEL / "model.safetensors")
    stored = {t.name: t for t in library.GGUFReader(demo.gguf()).tensors}

    def values(name: str) -> Any:
        return library.dequantize(stored[name].data, stored[name].tensor_type)

    down = tensors["model.layers.3.mlp.down_proj.weight"].numpy()
    np.testing.assert_array_equal(down, values("blk.3.ffn_down.weight").astype(np.float16))
    np.testing.assert_array_equal(tensors["model.norm.weight"].float(), values("output_norm.weight"))
    q = values("blk.0.attn_q.weight").astype(np.float16)
    given = tensors["model.layers.0.self_attn.q_proj.weight"].numpy()
    assert not np.array_equal(given, q) and np.array_equal(np.sort(given, 0), np.sort(q, 0))
    # Pairs (even, odd) of a head of 64 become its halves.
    np.testing.assert_array_equal(given[[0, 32, 1, 33]], q[:4])


def test_what_is_no_gguf_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"hello, I am not a GGUF file at all, whatever my name says")
    with pytest.raises(UserError, match="is not a readable GGUF file") as caught:
        convert(tmp_path / "m.gguf", tmp_path / "c")
    assert "\n" not in str(caught.value)
