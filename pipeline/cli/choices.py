"""How `pipeline select` prints what a rule chose."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.store.records import ChoiceRecord

if TYPE_CHECKING:
    from pipeline.calib.selectors import Choice, Question

NEARLY = 5
"""So many of those that were nearly chosen are printed; --json has all."""


def record(selector: str, question: Question, choice: Choice) -> ChoiceRecord:
    """What a rule chose, as --json prints it.

    Args:
        selector: the rule.
        question: what it was asked.
        choice: what it answered.
    """
    return ChoiceRecord(
        skip=choice.skip.name,
        attention=choice.skip.attention,
        mlp=choice.skip.mlp,
        select=selector,
        kind=question.kind,
        count=question.count,
        statistic=choice.statistic,
        note=choice.note,
        chosen=tuple((name, float(value)) for name, value in choice.chosen),
        stays=tuple((name, float(value)) for name, value in choice.stays),
        device=question.statistics.device,
    )


def text(choice: ChoiceRecord) -> str:
    """The same for a person."""
    lines = [choice.skip, *(words for words in (choice.statistic, choice.note) if words)]
    for verdict, sublayers in (("goes", choice.chosen), ("stays", choice.stays[:NEARLY])):
        lines += [f"  {verdict:<5}  {name:<12} {value:.4f}" for name, value in sublayers]
    return "\n".join(lines)
