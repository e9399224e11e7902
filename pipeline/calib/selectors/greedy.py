"""One sublayer at a time, the one whose removal raises the loss on text least, measured again after every removal.

In the manner of SLEB (Song et al. 2024, blocks) and BlockPruner (Zhong et al. 2024, sublayers). See `pipeline/removal.py`.
"""

from __future__ import annotations

from pipeline.calib.selectors import Choice, Question
from pipeline.types import SkipSet


def choose(question: Question) -> Choice:
    if not question.count:
        return Choice(SkipSet())
    found = question.statistics.removals(question.kind, question.count)
    steps = found.steps[: question.count]
    skip = SkipSet()
    for step in steps:
        skip |= SkipSet.parse(step.removed)
    stays = tuple((name, loss) for name, loss, _ in steps[-1].others)
    saved = 1 - found.flops / found.plain_flops
    note = f"whole model: {found.base_loss:.4f}; {found.flops:.1e} FLOPs, {saved:.0%} less than a whole pass for each candidate"
    return Choice(
        skip,
        "loss once it is gone, in order of removal",
        tuple((s.removed, s.loss) for s in steps),
        stays,
        note,
    )
