"""What comes with a model: config.json, tokenizers, weights and their index, GGUF, adapters."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from tests.fuzz.kinds import Kind

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text", "olmo2", "granite",
               "smollm3", "phi", "gpt_neox", "qwen")  # fmt: skip
ROPES: dict[str, dict[str, Any]] = {
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64},
    "linear": {"factor": 2.0},
}  # fmt: skip
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def kinds() -> list[Kind]:
    """Of a checkpoint, a GGUF file and an adapter."""
    from tests import tiny, tiny_gguf

    def of_type(model_type: str) -> Kind:
        return Kind(
            "config.json",
            model_type,
            {CONFIG: "json", "generation_config.json": "json"},
            lambda folder: _with_ids(tiny.checkpoint(folder, model_type)),
            open_all,
        )

    def of_rope(rope: str) -> Kind:
        def build(folder: Path) -> None:
            tiny.checkpoint(folder)
            _configure(folder, rope_scaling={"rope_type": rope, **ROPES[rope]}, rope_parameters=None)

        return Kind("config.json", f"rope-{rope}", {CONFIG: "json"}, build, open_all)

    whole = {"tokenizer.json": "json", "tokenizer_config.json": "json", "special_tokens_map.json": "json",
             "generation_config.json": "json", "added_tokens.json": "json"}  # fmt: skip
    return [
        *(of_type(model_type) for model_type in MODEL_TYPES),
        *(of_rope(rope) for rope in ROPES),
        Kind("drop lists", "llm-drop", {CONFIG: "json"}, _llm_drop, open_all),
        Kind("drop lists", "per-layer", {CONFIG: "json"}, _per_layer, open_all),
        Kind("drop lists", "nemotron-nas", {CONFIG: "json"}, _nemotron, open_all),
        Kind("tokenizer", "bpe", whole, lambda folder: _words(tiny_gguf.source(folder)), use_tokenizer),
        Kind("tokenizer", "sentencepiece", _SENTENCEPIECE, _sentencepiece, use_tokenizer),
        Kind("tokenizer", "qwen", {"qwen.tiktoken": "bytes"}, _tiktoken, use_tokenizer),
        Kind("safetensors index", "shards", {"model.safetensors.index.json": "json"}, _shards, open_all),
        Kind("safetensors", "weights", {WEIGHTS: "safetensors"}, _one_file, open_all),
        Kind("safetensors", "shard", {_SHARD: "safetensors"}, _four_shards, open_all),
        *(Kind("GGUF", arch, {"model.gguf": "gguf"}, _gguf(arch), use_gguf) for arch in ("llama", *_ARCHS)),
        Kind("GGUF", "deci", {"model.gguf": "gguf"}, _deci, use_gguf),
        Kind("adapter", "lora", _ADAPTER, _adapter, use_adapter),
    ]  # fmt: skip


_SENTENCEPIECE = {"tokenizer.model": "bytes", "tokenizer_config.json": "json"}
_ADAPTER = {"adapter_config.json": "json", "adapter_model.safetensors": "safetensors"}
_SHARD = "model-00002-of-00004.safetensors"
_ARCHS = ("qwen2", "phi3", "gemma3_text")


# ---- valid folders ----------------------------------------------------------------------------------------


def _configure(folder: Path, **changes: Any) -> None:
    file = folder / CONFIG
    config = {**json.loads(file.read_text(encoding="utf-8")), **changes}
    kept = {key: value for key, value in config.items() if value is not None}
    file.write_text(json.dumps(kept), encoding="utf-8")


def _with_ids(folder: Path) -> None:
    ids = {"eos_token_id": [2, 3], "bos_token_id": 1, "do_sample": True, "temperature": 0.5}
    (folder / "generation_config.json").write_text(json.dumps(ids), encoding="utf-8")


def _words(folder: Path) -> None:
    _with_ids(folder)
    special = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False, "normalized": False,
               "rstrip": False, "single_word": False}, "additional_special_tokens": ["<pad>"]}  # fmt: skip
    (folder / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")
    (folder / "added_tokens.json").write_text(json.dumps({"<s>": 1, "</s>": 2}), encoding="utf-8")
    file = folder / "tokenizer_config.json"
    config = {**json.loads(file.read_text(encoding="utf-8")), "model_max_length": 256,
              "chat_template": "{% for m in messages %}{{ m['content'] }}</s>{% endfor %}"}  # fmt: skip
    file.write_text(json.dumps(config), encoding="utf-8")


def _llm_drop(folder: Path) -> None:
    from tests import tiny

    _with_ids(tiny.checkpoint(folder, num_hidden_layers=4))
    _configure(folder, drop_attn_list=[1, 2], drop_mlp_list=[False, False, False, True])


def _per_layer(folder: Path) -> None:
    from tests import tiny

    _with_ids(tiny.checkpoint(folder, num_hidden_layers=4))
    _configure(folder, per_layer_config={"1": {"skip": ["attention"]}, "2": {"skip": ["attention", "mlp"]}})


def _nemotron(folder: Path) -> None:
    from pipeline.types import SkipSet
    from tests import tiny_nas

    tiny_nas.written(tiny_nas.whole(folder.parent / "whole"), folder, SkipSet.parse("attn1-2+mlp3"))


def _sentencepiece(folder: Path) -> None:
    from tests import tiny, tiny_sentencepiece

    tiny_sentencepiece.train(tiny.checkpoint(folder, vocab_size=tiny_sentencepiece.WORDS))


def _tiktoken(folder: Path) -> None:
    import base64

    from tests import tiny
    from tests.models.tokenizer.test_qwen import trained

    tiny.checkpoint(folder, "qwen", vocab_size=2048)
    lines = [f"{base64.b64encode(token).decode()} {rank}" for token, rank in trained().items()]
    (folder / "qwen.tiktoken").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "QWenTokenizer"}', encoding="utf-8")


def _shards(folder: Path) -> None:
    from tests import tiny

    _with_ids(tiny.checkpoint(folder, max_shard_size="60KB"))


def _one_file(folder: Path) -> None:
    from tests import tiny

    _with_ids(tiny.checkpoint(folder))


def _four_shards(folder: Path) -> None:
    from tests import tiny

    _with_ids(tiny.checkpoint(folder, max_shard_size="120KB"))


def _gguf(model_type: str) -> Any:
    def build(folder: Path) -> None:
        from tests import tiny_gguf

        changes = {"vocab_size": 300} if model_type != "phi3" else {}
        source = tiny_gguf.source(folder.parent / "source", model_type, **changes)
        folder.mkdir()
        tiny_gguf.write(source, folder / "model.gguf")

    return build


def _deci(folder: Path) -> None:
    from pipeline.types import SkipSet
    from tests import tiny_deci, tiny_gguf

    source = tiny_gguf.source(folder.parent / "source", num_hidden_layers=4, head_dim=16)
    folder.mkdir()
    tiny_gguf.write(source, folder / "model.gguf", tiny_deci.of(source, SkipSet.parse("attn1+block2")))


def _adapter(folder: Path) -> None:
    """An adapter as peft saves it, of the checkpoint in its subfolder."""
    import torch
    from safetensors.torch import load_file, save_file

    from tests import tiny

    folder.mkdir()
    tiny.checkpoint(folder / "model")
    pairs = {}
    for name, weight in load_file(folder / "model" / WEIGHTS).items():
        if name.endswith(("q_proj.weight", "down_proj.weight")):
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            pairs[f"{stem}.lora_A.weight"] = torch.randn(4, weight.shape[1])
            pairs[f"{stem}.lora_B.weight"] = torch.randn(weight.shape[0], 4)
    save_file(pairs, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 6, "lora_dropout": 0.0,
        "bias": "none", "target_modules": ["q_proj", "down_proj"], "rank_pattern": {"q_proj": 4},
        "alpha_pattern": {"down_proj": 6}, "use_rslora": False, "modules_to_save": None,
        "init_lora_weights": True, "base_model_name_or_path": "tiny", "layers_pattern": None,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")


# ---- what commands do with them ---------------------------------------------------------------------------


def open_all(folder: Path, free: Path) -> None:
    """As `export`, `list` and `bench` open a checkpoint: every check up to the authored graph; its costs."""
    from pipeline.graphs import export
    from pipeline.models import checkpoint, costs, drop_lists, tokenizer, unusable
    from pipeline.models.config import for_transformers

    unusable.refuse_other_kinds(folder)
    opened = checkpoint.open_checkpoint(folder)
    skip = drop_lists.of(opened)
    export.prove(opened, "fp32", skip)
    costs.parameters(opened.config, skip)
    for_transformers(opened.config)
    tokenizer.context(folder)
    tokenizer.rows(folder)
    tokenizer.stop_tokens(folder)
    assert opened.identity


def use_tokenizer(folder: Path, free: Path) -> None:
    """As `export` looks at a tokenizer, and `generate` and `score` use it."""
    from pipeline.models import tokenizer

    tokenizer.concern(folder)
    words = tokenizer.load(folder)
    ids = words.encode("The time of the people, 1234 é漢 \n\n  <s>")
    words.decode(ids[:50], skip_special_tokens=True)
    prompts = tokenizer.prompts(folder)
    prompts.encode("a way to see the world")
    assert words.prefix is not None and words.eos_token_id != -1


def use_gguf(folder: Path, free: Path) -> None:
    """As `export` converts a GGUF, and proves what it made of it."""
    from pipeline.models.gguf import convert

    convert.convert(folder / "model.gguf", free)
    open_all(free, free)
    use_tokenizer(free, free)


def use_adapter(folder: Path, free: Path) -> None:
    """As `export --adapter` reads an adapter."""
    from pipeline.calib import adapter_files
    from pipeline.models import unusable
    from pipeline.models.checkpoint import open_checkpoint
    from pipeline.types import UserError

    layers = adapter_files.read(folder, open_checkpoint(folder / "model"))
    assert all(layer.up.shape[1] == layer.down.shape[0] for layer in layers)
    with contextlib.suppress(UserError):  # it is one, and refused as a model
        unusable.refuse_adapter(folder)
        raise AssertionError("an adapter was taken for a model")
