"""The scaling of Llama 3.1 is found again in the tensor that llama.cpp makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.models import rope as authored
from pipeline.models.gguf import rope
from pipeline.types import UserError
from tests.tiny_gguf import rope_factors

FILE = Path("m.gguf")


def config(theta: float, head: int, **scaling: Any) -> dict[str, Any]:
    return {
        "rope_theta": theta,
        "head_dim": head,
        "partial_rotary_factor": 1.0,
        "rope_scaling": {"rope_type": "llama3", **scaling},
    }


@pytest.mark.parametrize("factor", [8.0, 32.0, 2.5, 16.0])
@pytest.mark.parametrize("ends", [(1.0, 4.0), (1.0, 2.0), (2.0, 8.0), (1.0, 32.0), (0.5, 4.0)])
@pytest.mark.parametrize("old", [64, 4096, 8192])
@pytest.mark.parametrize(("theta", "head"), [(5e5, 128), (5e5, 64), (1e4, 32), (1e4, 8)])
def test_the_frequencies_are_those_of_the_original(
    factor: float, ends: tuple[float, float], old: int, theta: float, head: int
) -> None:
    original = config(
        theta,
        head,
        factor=factor,
        low_freq_factor=ends[0],
        high_freq_factor=ends[1],
        original_max_position_embeddings=old,
    )
    factors = rope_factors(original).astype(np.float64)
    found = rope.of_frequencies(FILE, factors, original)
    expected = authored.rope(original).frequencies
    np.testing.assert_allclose(authored.rope({**original, "rope_scaling": found}).frequencies, expected, 2e-6)


def test_the_published_numbers_come_back() -> None:
    published = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    original = config(5e5, 128, **published)
    found = rope.of_frequencies(FILE, rope_factors(original).astype(np.float64), original)
    assert found == {"rope_type": "llama3", **published}


@pytest.mark.parametrize(
    "factors",
    [
        np.arange(1.0, 17.0),
        np.full(16, np.nan),
        np.zeros(16),
        np.full(16, -1.0),
        np.ones(15),
        np.linspace(1, 8, 16)[::-1],
        np.r_[np.ones(8), 4.0, 2.0, np.full(6, 8.0)],
    ],
)
def test_other_factors_are_refused(factors: Any) -> None:
    with pytest.raises(UserError, match=r"m\.gguf: rope_freqs\.weight"):
        rope.of_frequencies(FILE, factors, config(1e4, 32))


def test_factors_that_are_all_one_or_all_equal() -> None:
    assert rope.of_frequencies(FILE, np.ones(16), config(1e4, 32)) is None
    assert rope.of_frequencies(FILE, np.full(16, 4.0), config(1e4, 32)) == {
        "rope_type": "linear",
        "factor": 4.0,
    }


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, None),
        ({"scaling.type": "none", "scaling.factor": 4.0}, None),
        ({"scaling.type": "linear", "scaling.factor": 1.0}, None),
        ({"scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"scale_linear": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        (
            {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 32768},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        ),
    ],
)
def test_keys_of_scaling(keys: dict[str, Any], expected: dict[str, Any] | None) -> None:
    assert (
        rope.scaling(FILE, {f"llama.rope.{key}": value for key, value in keys.items()}, "llama") == expected
    )


@pytest.mark.parametrize("kind", ["longrope", "yarn", "new"])
def test_scaling_without_its_numbers_is_refused(kind: str) -> None:
    with pytest.raises(UserError, match=rf"rope\.scaling\.type is '{kind}'"):
        rope.scaling(FILE, {"llama.rope.scaling.type": kind, "llama.rope.scaling.factor": 2.0}, "llama")
