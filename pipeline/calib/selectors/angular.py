"""The block of n layers whose input and output are nearest in angle (Gromov et al. 2024, equations 6, 7).

ℓ*(n) = argmin over ℓ of d(x^(ℓ), x^(ℓ+n)); layers ℓ* … ℓ* + n − 1 go. Equal distances: the deeper block.
"""

from __future__ import annotations

from dataclasses import replace

from pipeline.calib.selectors import Choice, Question, by_rank
from pipeline.types import SkipSet, UserError

READS = ("tokens",)


def choose(question: Question) -> Choice:
    """The run of n layers over which the stream turns least.

    Raises:
        UserError: the kind is not `block`, or the model has no similarity statistics.
    """
    if question.kind != "block":
        raise UserError(f"angular chooses a run of whole layers: take --kind block, not {question.kind}")
    n = question.count
    if not n:
        return Choice(SkipSet())
    d = question.statistics.similarity.distances(question.statistics.tokens)
    runs = range(question.num_layers - n + 1)
    nearness = {
        SkipSet.of("block", range(first, first + n)).name: -float(d[first, first + n]) for first in runs
    }
    choice = by_rank("angular distance over the block; the smallest goes", nearness, 1)
    chosen, stays = (
        tuple((name, -value) for name, value in ranked) for ranked in (choice.chosen, choice.stays)
    )
    return replace(choice, chosen=chosen, stays=stays)
