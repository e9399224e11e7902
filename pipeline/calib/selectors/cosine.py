"""The n sublayers of the kind with the highest input-output cosine: they change the residual stream least.

The ranking of single sublayers that LLM-Drop uses (He et al. 2024, arXiv:2406.15786); for blocks, of whole
layers.
"""

from __future__ import annotations

from pipeline.calib.selectors import Choice, Question, by_rank
from pipeline.types import SkipSet


def choose(question: Question) -> Choice:
    """The n of the kind with the highest cosine.

    Raises:
        UserError: the model has no similarity statistics.
    """
    if not question.count:
        return Choice(SkipSet())
    values = question.statistics.similarity.by_candidate(question.kind)
    return by_rank("input-output cosine; the largest goes", values, question.count)
