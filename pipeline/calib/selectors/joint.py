"""Attention and MLP sublayers ranked in one pool by cosine (the joint drop of LLM-Drop, He et al. 2024).

n counts sublayers: `cosine` leaves out twice as many for the same n of blocks.
"""

from __future__ import annotations

from pipeline.calib.selectors import Choice, Question, by_rank
from pipeline.types import SkipSet, UserError


def choose(question: Question) -> Choice:
    """The n sublayers of either kind with the highest cosine.

    Raises:
        UserError: the kind is not `block`, or the model has no similarity statistics.
    """
    if question.kind != "block":
        raise UserError(
            f"joint chooses from attention and MLP together: take --kind block, not {question.kind}"
        )
    if not question.count:
        return Choice(SkipSet())
    values = question.statistics.similarity.by_candidate("attn", "mlp")
    return by_rank("input-output cosine; the largest goes", values, question.count)
