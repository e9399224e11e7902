"""A search by mutation and selection over all masks of one cost, for the least KL to the whole model.

EvoPress (Sieberling et al. 2024, arXiv:2410.14649), which makes no assumption that errors add up. See
`pipeline/calib/evolution/`.
"""

from __future__ import annotations

from dataclasses import replace

from pipeline.calib import selectors
from pipeline.calib.evolution.options import EvoOptions
from pipeline.calib.evolution.space import Space
from pipeline.calib.selectors import MEASURES, RUNNERS_UP, Choice, Question
from pipeline.store.records import EvoRecord
from pipeline.types import SkipSet, UserError

FIRST = "cosine"
"""The rule whose choice a search begins with."""
ENDS = {
    "minutes": "its minutes were over; it goes on with more --minutes",
    "generations": "that was all of them; it goes on with more --generations",
    "patience": "the last ones found nothing better",
    "exhausted": "no mask near the best was left",
}

READS = ("seed", *MEASURES)


def choose(question: Question) -> Choice:
    """The best set of n of the kind that the search came to.

    Raises:
        UserError: the start is no set of this kind and number, or its rule lacks its statistics; the text is
            too short, or a loss is not finite.
    """
    if not question.count:
        return Choice(SkipSet())
    space = Space.by_count(question.kind, question.count, question.num_layers)
    record = question.statistics.evolved(space, lambda: _start(space, question), question.seed, question.evo)
    return of_record(record)


def of_record(record: EvoRecord) -> Choice:
    """What a search came to, as a choice.

    Args:
        record: of the search.
    """
    pairs = tuple(record.measured.items())[:RUNNERS_UP]
    number = len(record.generations)
    note = f"start: {record.start_value:.4f} ({record.start}); {number} generation{'s' * (number != 1)}"
    note += f", {ENDS[record.stopped]}" if record.stopped else ""
    return Choice(
        SkipSet.parse(record.best[0]),
        "KL to the whole model's distribution, nats a token; the least goes",
        pairs[:1],
        pairs[1:],
        note,
        tuple((SkipSet.parse(name), value) for name, value in pairs),
    )


def named_start(options: EvoOptions, question: Question) -> SkipSet:
    """The set that --start names, or that the rule chooses which it names.

    Args:
        options: as they were typed.
        question: that a rule is asked.

    Raises:
        UserError: it is neither, or evo itself; or the rule lacks its statistics.
    """
    start = options.start or FIRST
    if start == "evo":
        raise UserError("--start evo would begin with itself; name another rule, or a skip set")
    if start in selectors.names():
        return selectors.choose(start, replace(question, evo=EvoOptions())).skip
    try:
        return SkipSet.parse(start).within(question.num_layers)
    except UserError as error:
        rules = ", ".join(name for name in selectors.names() if name != "evo")
        raise UserError(f"--start is a rule ({rules}) or a skip set: {error}") from None


def _start(space: Space, question: Question) -> SkipSet:
    """The first parent of a search by count."""
    start = named_start(question.evo, question)
    if start not in space:
        what = {"attn": "attention sublayers", "mlp": "MLPs", "block": "whole layers"}[question.kind]
        raise UserError(
            f"--start {question.evo.start or FIRST:.200} does not leave out {question.count} {what}"
        )
    return start
