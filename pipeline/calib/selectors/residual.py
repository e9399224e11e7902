"""The n sublayers of the kind of which the best linear map leaves least over.

For sublayer f with the stream x before it and h that it reads: Σ|f − hA − b|² / Σ|x|², A and b by ridge
regression, sums over tokens. The numerator is (1 − R²)·Σ|f|², issue 19's equation with R² about nought; the
linear map itself is ReplaceMe's (arXiv:2505.02819), for one sublayer. The denominator makes
layers comparable: the stream grows with depth, every norm behind it divides by its size, and so an error
counts by its share of the stream. A block's value is the sum of its two sublayers'.
"""

from __future__ import annotations

from dataclasses import replace

from pipeline.calib.selectors import MEASURES, Choice, Question, by_rank
from pipeline.types import SkipSet

READS = MEASURES


def choose(question: Question) -> Choice:
    """The n of the kind whose unexplained share of the stream is smallest.

    Raises:
        UserError: the text has fewer tokens than a map has unknowns, or activations are not finite.
    """
    if not question.count:
        return Choice(SkipSet())
    left = question.statistics.residuals(question.kind)
    choice = by_rank(
        "what the best linear map leaves over, as a share of the stream; the smallest goes",
        {name: -value for name, value in left.items()},
        question.count,
    )
    chosen, stays = (
        tuple((name, -value) for name, value in ranked) for ranked in (choice.chosen, choice.stays)
    )
    return replace(choice, chosen=chosen, stays=stays)
