"""The last n of the kind (Tyukin et al. 2024, §2.1)."""

from __future__ import annotations

from pipeline.calib.selectors import Choice, Question
from pipeline.types import SkipSet


def choose(question: Question) -> Choice:
    """Layers L − n … L − 1."""
    return Choice(SkipSet.of(question.kind, range(question.num_layers - question.count, question.num_layers)))
