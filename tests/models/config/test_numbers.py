"""Types and ranges of the values of config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.models.config import _numbers
from pipeline.types import UserError
from tests.models.config import Refused, assert_refused

NONSENSE: list[Refused] = [
    ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
    ("llama", {"rms_norm_eps": float("inf")}, "rms_norm_eps is inf"),
    ("llama", {"rms_norm_eps": -1e-5}, "rms_norm_eps is -1e-05"),
    ("llama", {"rms_norm_eps": 0}, "rms_norm_eps is 0"),
    ("llama", {"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5'"),
    ("llama", {"rms_norm_eps": None}, "rms_norm_eps is None"),
    ("phi", {"layer_norm_eps": -1}, "layer_norm_eps is -1"),
    ("llama", {"rope_theta": 0}, "rope_theta is 0"),
    ("llama", {"rope_theta": -5.0}, "rope_theta is -5.0"),
    ("llama", {"rope_theta": None}, "rope_theta is None"),
    ("llama", {"rope_theta": float("nan")}, "rope_theta is nan"),
    ("llama", {"num_hidden_layers": True}, "num_hidden_layers is True"),
    ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
    ("llama", {"num_hidden_layers": 2.0}, "num_hidden_layers is 2.0"),
    ("llama", {"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    ("llama", {"vocab_size": -1}, "vocab_size is -1"),
    ("llama", {"vocab_size": 2**40}, "vocab_size is 1099511627776"),
    ("llama", {"hidden_size": "64"}, "hidden_size is '64'"),
    ("llama", {"intermediate_size": []}, r"intermediate_size is \[\]"),
    (
        "llama",
        {"num_attention_heads": 6, "num_key_value_heads": 4},
        "num_attention_heads 6 is not a multiple",
    ),
    (
        "mistral",
        {"num_attention_heads": 4},
        "num_attention_heads 4 is not a multiple of num_key_value_heads 8",
    ),
    ("llama", {"head_dim": 15}, "head_dim 15 .* even number"),
    ("llama", {"head_dim": 0}, "head_dim is 0"),
    ("llama", {"hidden_size": 60, "num_attention_heads": 4}, "head_dim 15 .* even number"),
    ("phi", {"head_dim": 16, "partial_rotary_factor": 0.2}, "rotates 3 numbers"),
    ("phi", {"partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5"),
    ("qwen3", {"head_dim": None}, "head_dim is null"),
    ("llama", {"tie_word_embeddings": "x"}, "tie_word_embeddings is 'x'"),
    ("llama", {"tie_word_embeddings": 1}, "tie_word_embeddings is 1"),
    ("llama", {"attention_bias": "false"}, "attention_bias is 'false'"),
    ("llama", {"hidden_act": 3}, "hidden_act is 3"),
    ("llama", {"model_type": ["llama"]}, r"model_type is \['llama'\]"),
    ("llama", {"max_position_embeddings": 0}, "max_position_embeddings is 0"),
    ("llama", {"eos_token_id": "2"}, "eos_token_id is '2'"),
    ("granite", {"residual_multiplier": 0}, "residual_multiplier is 0"),
    ("granite", {"attention_multiplier": -0.1}, "attention_multiplier is -0.1"),
    ("granite", {"embedding_multiplier": None}, "embedding_multiplier is None"),
    ("granite", {"logits_scaling": float("nan")}, "logits_scaling is nan"),
    ("smollm3", {"no_rope_layer_interval": 0}, "no_rope_layer_interval is 0"),
    ("smollm3", {"no_rope_layers": [1, 2] * 18}, "no_rope_layers is"),
    ("smollm3", {"no_rope_layers": "every fourth"}, "no_rope_layers is 'every fourth'"),
    ("opt", {"num_hidden_layers": True}, "num_hidden_layers is True"),
    ("opt", {"vocab_size": "96"}, "vocab_size is '96'"),
]


@pytest.mark.parametrize(("model_type", "keys", "why"), NONSENSE)
def test_what_no_model_has_is_refused_by_key(model_type: str, keys: dict[str, Any], why: str) -> None:
    assert_refused(model_type, keys, why)


def test_one_wrong_value_of_a_long_list_is_enough(tmp_path: Path) -> None:
    """pydantic would make an error of each, and a file of 64 MB has millions."""
    for key in ("no_rope_layers", "layer_types"):
        config = {"num_hidden_layers": 2, "vocab_size": 8, "hidden_size": 8, key: [None] * 200_000}
        with pytest.raises(ValidationError) as caught:
            _numbers._Numbers.model_validate(config)
        assert caught.value.error_count() == 1
        with pytest.raises(UserError, match=f"config.json: {key} is "):
            _numbers.checked({"model_type": "llama", **config}, tmp_path / "config.json")
