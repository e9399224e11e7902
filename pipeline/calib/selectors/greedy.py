"""One sublayer at a time: the one whose removal raises the loss least, measured anew after every removal.

In the manner of SLEB (Song et al. 2024, blocks) and BlockPruner (Zhong et al. 2024, sublayers). See
`pipeline/calib/search.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from pipeline.calib.selectors import MEASURES, RUNNERS_UP, Choice, Question
from pipeline.store.records import GreedyRecord
from pipeline.types import SkipSet

READS = MEASURES


def choose(question: Question) -> Choice:
    """The first n removals of the greedy order.

    Raises:
        UserError: the text is too short, or a loss is not finite.
    """
    return first(question, question.statistics.removals, "loss once it is gone, in order of removal")


def first(question: Question, removals: Callable[[str, int], GreedyRecord], statistic: str) -> Choice:
    """The first n removals of an order.

    Args:
        question: kind and n.
        removals: gives the order of a kind, so many removals or more.
        statistic: what its losses are, in words.
    """
    if not question.count:
        return Choice(SkipSet())
    order = removals(question.kind, question.count)
    steps = order.steps[: question.count]
    before = SkipSet()
    for step in steps[:-1]:
        before |= SkipSet.parse(step.removed)
    last = [(steps[-1].removed, steps[-1].loss), *((name, loss) for name, loss, _ in steps[-1].others)]
    runners_up = tuple((before | SkipSet.parse(name), loss) for name, loss in last[:RUNNERS_UP])
    stays = tuple((name, loss) for name, loss, _ in steps[-1].others)
    saved = 1 - order.flops / order.plain_flops
    note = (
        f"whole model: {order.base_loss:.4f}; {order.flops:.1e} FLOPs, "
        f"{saved:.0%} less than a whole pass for each candidate"
    )
    chosen = tuple((step.removed, step.loss) for step in steps)
    return Choice(runners_up[0][0], statistic, chosen, stays, note, runners_up)
