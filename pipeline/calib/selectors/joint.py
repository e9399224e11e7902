"""Attention and MLP sublayers ranked in one pool by input-output cosine, until n sublayers are chosen (LLM-Drop's joint drop).

n counts sublayers: `cosine` leaves out twice as many for the same n of blocks.
"""

from __future__ import annotations

from pipeline.calib.selectors import Choice, Question, by_rank
from pipeline.types import SkipSet, UserError


def choose(question: Question) -> Choice:
    if question.kind != "block":
        raise UserError(
            f"joint chooses from attention and MLP together: take --kind block, not {question.kind}"
        )
    if not question.count:
        return Choice(SkipSet())
    told = question.statistics.similarity
    values = {
        f"{kind}{layer}": float(value)
        for kind in ("attn", "mlp")
        for layer, value in enumerate(told.cosine(kind))
    }
    return by_rank("input-output cosine; the largest goes", values, question.count)
