"""The losses against plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.calib import losses

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(size=(2, 3, 7)), RNG.normal(size=(2, 3, 7))


def probabilities(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def test_divergence_is_kl_of_the_teacher_from_the_student() -> None:
    p, q = probabilities(TEACHER), probabilities(STUDENT)
    expected = (p * np.log(p / q)).sum(-1).mean()
    assert float(losses.divergence(torch.tensor(STUDENT), torch.tensor(TEACHER))) == pytest.approx(
        expected, rel=1e-5
    )
    assert float(losses.divergence(torch.tensor(TEACHER), torch.tensor(TEACHER))) == pytest.approx(
        0, abs=1e-6
    )


def test_mismatch_is_relative_to_the_teachers_stream() -> None:
    expected = (((STUDENT - TEACHER) ** 2).sum(-1) / (TEACHER**2).sum(-1)).mean()
    assert float(losses.mismatch(torch.tensor(STUDENT), torch.tensor(TEACHER))) == pytest.approx(
        expected, rel=1e-5
    )
    larger = losses.mismatch(torch.tensor(9 * STUDENT), torch.tensor(9 * TEACHER))
    assert float(larger) == pytest.approx(expected, rel=1e-5)
    assert float(losses.mismatch(torch.ones(1, 1, 2), torch.zeros(1, 1, 2))) < float("inf")


def test_cross_entropy_reads_each_next_token() -> None:
    ids = np.array([[1, 4, 2], [0, 6, 6]])
    p = probabilities(STUDENT)
    expected = -np.mean([np.log(p[row, t, ids[row, t + 1]]) for row in range(2) for t in range(2)])
    value = losses.cross_entropy(torch.tensor(STUDENT), torch.tensor(ids))
    assert float(value) == pytest.approx(expected, rel=1e-5)
