"""A set that others published for this very model: calib/published/*.toml, each with its source.

It is the one of the kind and count that are asked for; where several are, `--set` names one (`SkipOptions`).
"""

from __future__ import annotations

from pipeline.calib import published
from pipeline.calib.selectors import Choice, Question
from pipeline.types import SkipSet


def choose(question: Question) -> Choice:
    """The published set of n sublayers of the kind.

    Raises:
        UserError: none is known of the model, none of them matches, or several do.
    """
    if not question.count:
        return Choice(SkipSet())
    ids = published.ids_of(question.model, question.statistics.folder)
    sets = published.find(ids, question.num_layers)
    one = published.Wanted(question.kind, question.count).one(sets)
    return Choice(one.skip, one.rule, note=one.origin)
