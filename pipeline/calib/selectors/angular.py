"""The block of n layers whose input and output are nearest in angle (Gromov et al. 2024, equations 6 and 7); blocks only.

ℓ*(n) = argmin over ℓ of d(x^(ℓ), x^(ℓ+n)); layers ℓ* … ℓ* + n − 1 go. Equal distances: the deeper block.
"""

from __future__ import annotations

from dataclasses import replace

from pipeline.calib.selectors import Choice, Question, by_rank
from pipeline.types import SkipSet, UserError


def choose(question: Question) -> Choice:
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
    found = by_rank("angular distance over the block; the smallest goes", nearness, 1)
    distances = [tuple((name, -value) for name, value in part) for part in (found.chosen, found.stays)]
    return replace(found, chosen=distances[0], stays=distances[1])
