"""As `greedy`, with the best linear map in the place of all that is gone: what is lost *after* compensation.

The maps are those of `compensate --with linear`, one for each sublayer, fitted on the whole model.
"""

from __future__ import annotations

from pipeline.calib.selectors import MEASURES, Choice, Question, greedy

READS = MEASURES


def choose(question: Question) -> Choice:
    """The first n removals of the greedy order with maps.

    Raises:
        UserError: the text is too short, or a loss is not finite.
    """
    removals = question.statistics.compensated_removals
    return greedy.first(question, removals, "loss with a linear map in its place, in order of removal")
