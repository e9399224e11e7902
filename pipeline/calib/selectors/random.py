"""Layers drawn at random, seeded: the control that every rule must beat."""

from __future__ import annotations

import numpy as np

from pipeline.calib.selectors import Choice, Question
from pipeline.types import SkipSet

READS = ("seed",)


def choose(question: Question) -> Choice:
    """Draws n layers, the same for the same seed."""
    drawn = np.random.default_rng(question.seed).permutation(question.num_layers)[: question.count]
    return Choice(SkipSet.of(question.kind, (int(layer) for layer in drawn)))
