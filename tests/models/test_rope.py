"""Inverse frequencies and factors against those that transformers computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from pipeline.models.config import Config, normalised
from pipeline.models.rope import rope
from pipeline.types import UserError


def config(model_type: str = "llama", **keys: Any) -> Config:
    """A config.json with these keys, as it is read."""
    return normalised({"model_type": model_type, **keys}, Path("config.json"))


SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


@pytest.mark.parametrize("scaling", SCALINGS)
def test_frequencies_are_those_of_transformers(scaling: str) -> None:
    keys: dict[str, Any] = {
        "hidden_size": 64,
        "num_attention_heads": 2,
        "rope_theta": 500000.0,
        "rope_scaling": SCALINGS[scaling],
        "max_position_embeddings": 512,
    }
    truth, factor = ROPE_INIT_FUNCTIONS[scaling](AutoConfig.for_model("llama", **keys), "cpu")
    written = rope(config(**keys))
    np.testing.assert_allclose(written.frequencies, truth.numpy(), rtol=1e-6)
    assert written.factor == factor == 1.0 and written.long_frequencies is None


def test_both_forms_of_the_config_mean_the_same() -> None:
    outer: dict[str, Any] = {"rope_theta": 1e6, "partial_rotary_factor": 0.5}
    old = rope(config("phi", **outer))
    new = rope(config("phi", rope_parameters={"rope_type": "default", **outer}))
    assert len(old.frequencies) == 16
    np.testing.assert_array_equal(old.frequencies, new.frequencies)


def test_longrope_has_two_lists_and_a_factor() -> None:
    written = rope(
        config(
            "phi3",
            head_dim=4,
            max_position_embeddings=128,
            original_max_position_embeddings=16,
            rope_scaling={"type": "longrope", "short_factor": [1.0, 2.0], "long_factor": [4.0, 8.0]},
        )
    )
    base = np.array([1.0, 0.01], np.float32)
    np.testing.assert_allclose(written.frequencies, base / np.array([1.0, 2.0]), rtol=1e-6)
    np.testing.assert_allclose(written.long_frequencies, base / np.array([4.0, 8.0]), rtol=1e-6)
    assert written.switch == 16 and written.factor == pytest.approx((1 + np.log(8) / np.log(16)) ** 0.5)


def test_an_unknown_scaling_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"rope scaling 'yarn' is not authored here .*--from-onnx"):
        rope(config(rope_scaling={"rope_type": "yarn", "factor": 2.0}))
