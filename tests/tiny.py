"""Tiny random-weight checkpoints of every architecture, as transformers itself saves them."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from pipeline import store
from pipeline.models import qwen as _qwen  # noqa: F401 - transformers knows its classes from now on
from pipeline.models import texts
from pipeline.store import records

COMMON = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
DIALECTS: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 32},  # not hidden / heads
    "mistral": {"sliding_window": 7, "head_dim": 16},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "phi3": {"sliding_window": 9},
    "gemma2": {
        "sliding_window": 7,
        "head_dim": 32,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 3.0,
    },
    "gemma3_text": {
        "sliding_window": 7,
        "head_dim": 32,
        "query_pre_attn_scalar": 24,
        "sliding_window_pattern": 2,
    },
    "olmo2": {},
    "granite": {
        "embedding_multiplier": 12.0,
        "attention_multiplier": 0.4,
        "residual_multiplier": 0.22,
        "logits_scaling": 10.0,
    },
    "smollm3": {"no_rope_layer_interval": 2},
    "phi": {"partial_rotary_factor": 0.5, "num_key_value_heads": 4},
    "gpt_neox": {"num_key_value_heads": 4},
    "qwen": {"num_key_value_heads": 4, "kv_channels": 16, "seq_length": 200},
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
"""A rope scaling of Llama 3.1's kind, whose switch a short text reaches."""
TRANSFORMERS = int(transformers.__version__.split(".")[0])
"""The installed version's first number: 4 or 5."""
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def checkpoint(
    folder: Path, model_type: str = "llama", dtype: str = "fp32", seed: int = 0, **changes: Any
) -> Path:
    """Writes config.json and model.safetensors of a random model into `folder`."""
    # copied: transformers 5 writes the rope's base into the dict that it is given
    settings = copy.deepcopy({**COMMON, **DIALECTS[model_type], **changes})
    shards = settings.pop("max_shard_size", "1GB")
    config = AutoConfig.for_model(model_type, **settings)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if (
                parameter.ndim == 1
            ):  # norms of one and biases of nought would hide a swapped or forgotten tensor
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif "embed" not in name:
                parameter.mul_(4)
    model.to(DTYPES[dtype]).save_pretrained(folder, max_shard_size=shards)
    return folder


def tokenizer(folder: Path, bos: bool = False, window: int | None = None) -> Path:
    """A byte-level BPE tokenizer of 300 words, trained on CPython's English; `bos` puts one before a text."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer, words.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    special = ["<pad>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    words.train_from_iterator([texts.text()[:20_000]], trainer)
    if bos:
        words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    extra = {} if window is None else {"model_max_length": window}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>", **extra
    )
    fast.save_pretrained(folder)
    return folder


WORDS = 300


def environment() -> dict[str, str]:
    """The environment of a child process that runs the command from this checkout."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "HF_HUB_OFFLINE": "1"}


def similarity_request(**changes: Any) -> records.SimilarityRequest:
    """What similarity statistics are of, for tests that make the arrays by hand."""
    fields: dict[str, Any] = {
        "model": "tiny",
        "weights": "abc",
        "runner": "torch",
        "length": 8,
        "buckets": 2,
        "tokens": 8,
        "wanted": 1,
        "texts": records.TextSource(origin="words"),
    }
    return records.SimilarityRequest(**{**fields, **changes})


def similarity_record() -> records.SimilarityRecord:
    """The record of statistics that lie in no file."""
    return records.SimilarityRecord(**dict(similarity_request()), arrays_sha256="0" * 64)


def passed(artefact: Path, digest: str | None = None) -> Path:
    """Writes the result of a check that this artefact has passed, without running it."""
    variant = store.variant(artefact, quick=True)
    result = store.result_of(artefact, "check")
    folder = store.checkpoint_folder(artefact)
    files = [path for path in (*store.weight_paths(artefact), folder / "config.json") if path.is_file()]
    fields = {
        **records.variant_fields(variant),
        "artefact": store.relative(artefact, result),
        "sha256": digest or store.sha256(artefact),
        "passed": True,
        "files": [
            store.weights.state(file, full=True).replaced(file=store.relative(file, result)).plain()
            for file in files
        ],
    }
    store.write_json(result, records.CheckRecord.model_validate_json(json.dumps(fields)).plain())
    return result
