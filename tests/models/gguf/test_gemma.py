"""What a file of Gemma's does not say is what llama.cpp takes for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.models import demo
from pipeline.models.gguf import gemma, parts
from pipeline.models.gguf.convert import config_of
from pipeline.models.gguf.numbers import Numbers
from tests.gemma import needs_gemma

SIZES = {"num_hidden_layers": 6, "num_attention_heads": 4, "hidden_size": 96, "head_dim": 32,
         "max_position_embeddings": 512}  # fmt: skip


def numbers(arch: str, **fields: Any) -> Numbers:
    return Numbers(Path("m.gguf"), {f"{arch}.{key}": value for key, value in fields.items()}, arch)


def test_gemma_2() -> None:
    said = gemma.gemma2(numbers("gemma2"), SIZES)
    assert (said["attn_logit_softcapping"], said["final_logit_softcapping"]) == (50.0, 30.0)
    assert said["sliding_window"] == 4096 and said["query_pre_attn_scalar"] == 32
    assert said["layer_types"] == ["sliding_attention", "full_attention"] * 3
    said = gemma.gemma2(numbers("gemma2", attn_logit_softcapping=20.0, final_logit_softcapping=10.0), SIZES)
    assert (said["attn_logit_softcapping"], said["final_logit_softcapping"]) == (20.0, 10.0)


def test_gemma_3() -> None:
    said = gemma.gemma3(numbers("gemma3", **{"attention.sliding_window": 64}), SIZES)
    assert said["layer_types"] == ["sliding_attention"] * 5 + ["full_attention"]
    assert said["sliding_window"] == 64 and said["final_logit_softcapping"] is None
    assert said["rope_local_base_freq"] == 10000.0 and said["query_pre_attn_scalar"] == 32
    said = gemma.gemma3(numbers("gemma3", **{"rope.freq_base_swa": 5e3}), SIZES)
    assert said["layer_types"] == ["full_attention"] * 6 and said["rope_local_base_freq"] == 5e3


@pytest.mark.parametrize(("arch", "layers"), [("gemma2", 46), ("gemma3", 62)])
def test_the_largest_divides_scores_by_another_number(arch: str, layers: int) -> None:
    """Gemma 2 and 3 27B: the hidden size by heads, which is not the head's."""
    said = getattr(gemma, arch)(numbers(arch), {**SIZES, "num_hidden_layers": layers})
    assert said["query_pre_attn_scalar"] == 96 // 4


@needs_gemma
@pytest.mark.slow
def test_the_config_of_gemma_3_270m_is_the_published_one() -> None:
    config = config_of(parts.read(demo.gguf("gemma")))
    published = {
        "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262144, "sliding_window": 512,
        "max_position_embeddings": 32768, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": None, "tie_word_embeddings": True,
        "hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": None,
        "final_logit_softcapping": None, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
    }  # fmt: skip
    assert {key: config.get(key) for key in published} == published
