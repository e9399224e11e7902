"""The n before the final layer, which stays (Tyukin et al. 2024, §3.2; Gromov et al. 2024, §4.4).

Gromov et al. write "layers (L − n) to (L − 1), inclusive". Counted from 1, as their words "excluding the
final layer" ask, these are the n layers before layer L. Counted from 0, as everywhere here, they are L − 1 −
n … L − 2.
"""

from __future__ import annotations

from pipeline.calib.selectors import Choice, Question
from pipeline.types import SkipSet, UserError


def choose(question: Question) -> Choice:
    """Layers L − 1 − n … L − 2.

    Raises:
        UserError: n is L.
    """
    count, layers = question.count, question.num_layers
    if count > layers - 1:
        raise UserError(
            f"last-but-final keeps the final layer: at most {layers - 1} of {layers} layers can go, "
            f"not {count}"
        )
    return Choice(SkipSet.of(question.kind, range(layers - 1 - count, layers - 1)))
