"""How tokens are drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pipeline.runtime.generation.sampling import Sampler, Sampling, kept
from pipeline.types import UserError


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 50), st.integers(0, 60), st.floats(0.05, 1))
def test_kept_is_what_transformers_keeps(seed: int, size: int, top_k: int, top_p: float) -> None:
    scores = np.random.default_rng(seed).normal(0, 3, size).astype(np.float32)
    assume(
        np.abs(kept(scores, top_k, 1)[1].cumsum() - top_p)[:-1].min(initial=1) > 1e-5
    )  # nearer, rounding decides
    warped = torch.tensor(scores)[None]
    warped = TopKLogitsWarper(top_k)(None, warped) if top_k else warped
    warped = TopPLogitsWarper(top_p)(None, warped) if top_p < 1 else warped
    (ids, chances), probabilities = kept(scores, top_k, top_p), np.zeros(size)
    probabilities[ids] = chances
    np.testing.assert_allclose(probabilities, warped[0].double().softmax(0).numpy(), rtol=0, atol=1e-6)
    assert chances.tolist() == sorted(chances, reverse=True)


@pytest.mark.parametrize(
    ("repetition", "presence", "frequency"),
    [(1.5, 0, 0), (0.6, 0, 0), (1, 0.7, 0), (1, 0, 0.4), (2, -1, 0.9)],
)
def test_penalties_are_those_of_transformers_and_openai(
    repetition: float, presence: float, frequency: float
) -> None:
    rng, ids, differ = np.random.default_rng(0), [3, 3, 7], 0
    penalties = Sampling(
        repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency
    )
    sampler, processor = Sampler(penalties, ids), RepetitionPenaltyLogitsProcessor(float(repetition))
    for _ in range(60):
        logits = rng.normal(size=40).astype(np.float32)
        counts = np.bincount(ids[3:], minlength=40)
        scores = (
            processor(torch.tensor([ids]), torch.tensor(logits[None]))[0].numpy()
            - frequency * counts
            - presence * (counts > 0)
        )
        ids.append(int(scores.argmax()))
        differ += ids[-1] != logits.argmax()
        assert sampler.pick(logits) == ids[-1]
    assert differ > 3


def test_draws_have_the_probabilities_that_were_asked_for() -> None:
    logits = np.array([1.0, -2, 0.5, 2, -0.3, 1.9], np.float16)
    sampler = Sampler(Sampling(temperature=0.7, top_k=5, top_p=0.95, seed=1), [])
    ids, chances = kept(logits.astype(np.float32) / np.float32(0.7), 5, 0.95)
    counts = np.bincount([sampler.pick(logits) for _ in range(5000)], minlength=6)
    assert (
        len(ids) == 4 and counts[ids].sum() == 5000 and chisquare(counts[ids], 5000 * chances).pvalue > 0.01
    )


@pytest.mark.parametrize("temperature", [0, 1e-3, 1e-38, 1e-45])
def test_a_temperature_of_0_or_near_it_is_the_likeliest_token(temperature: float) -> None:
    assert (
        Sampler(Sampling(temperature=temperature, seed=0), []).pick(np.array([1, 20, 3, -4], np.float32)) == 1
    )


@pytest.mark.parametrize(
    ("bad", "temperature"), [(np.nan, 0), (np.nan, 1), (np.inf, 0), (np.inf, 1), (-np.inf, 0), (-np.inf, 1)]
)
def test_an_overflow_is_refused(bad: float, temperature: float) -> None:
    with pytest.raises(UserError, match="are not finite"):
        Sampler(Sampling(temperature=temperature, seed=0), []).pick(np.array([0, bad, 1, 2], np.float32))


OUT_OF_RANGE: dict[str, tuple[Any, ...]] = {
    "max_tokens": (-1, 0),
    "temperature": (np.nan, -0.1),
    "top_k": (-1,),
    "top_p": (0.0, 1.1, np.nan),
    "seed": (-1,),
    "stop": (("a", ""), tuple("abcdefghijklmnopq"), ("x" * 257,)),
    "repetition_penalty": (0.0, np.inf),
    "presence_penalty": (np.inf,),
    "frequency_penalty": (-np.inf,),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in OUT_OF_RANGE.items() for value in values]
)
def test_settings_out_of_range_are_named(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=name):
        Sampling(**{name: value})


def test_as_many_and_as_long_stop_strings_as_may_be() -> None:
    assert len(Sampling(stop=("x" * 256,) * 16).stop) == 16
