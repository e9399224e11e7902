"""The greedy order of removals: how the loss rises as sublayers go one at a time, as in SLEB and BlockPruner.

Every step measures each candidate that is still there and removes the one whose absence costs least
(`race.py`); with its linear map in its place, where `compensate` will put one. The order is kept in
calib/<model>/greedy-<kind>.json or greedy-linear-<kind>.json; a longer one goes on from a shorter one.

Legend: N sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from pipeline import store
from pipeline.calib import race as racing
from pipeline.calib.compensation import stand_ins
from pipeline.calib.compensation.moment_files import HELD_OUT, MomentsText
from pipeline.models import texts
from pipeline.models.checkpoint import Checkpoint, open_checkpoint
from pipeline.models.reference import FAST, Reference
from pipeline.store import records
from pipeline.store.records import GreedyRecord, GreedyRequest, TextSource
from pipeline.types import BASE, SkipSet

SAMPLES = 32
"""Sequences that losses are measured on by default."""


def removals(
    folder: Path,
    kind: str,
    count: int,
    text_input: texts.TextInput,
    samples: int = SAMPLES,
    length: int = 256,
) -> GreedyRecord:
    """An order of removals of a kind, `count` of them or more where more are known.

    Args:
        folder: the checkpoint.
        kind: attn, mlp or block.
        count: removals.
        text_input: the text that losses are measured on.
        samples: N.
        length: T.

    Raises:
        UserError: too little text, fewer sublayers than `count`, or a loss that is no number.
    """
    checkpoint = open_checkpoint(folder)
    tokens, source = texts.cut(folder, text_input, length, samples)
    path = checkpoint.calib / f"greedy-{kind}.json"
    request = _request(checkpoint, kind, tokens, source.replaced(origin=text_input.origin(path)))
    return _order(path, request, count, lambda: racing.Race(Reference(folder, load=FAST), kind, tokens))


def compensated_removals(
    folder: Path, kind: str, count: int, text_input: texts.TextInput, samples: int, length: int = 256
) -> GreedyRecord:
    """An order as `removals`, with the best linear map in the place of all that is gone.

    Maps are fitted on the whole model, once; moments that are missing are gathered now, and `compensate` uses
    the same. Losses are measured on text behind all that `compensate` reads.

    Args:
        folder: the checkpoint.
        kind: attn, mlp or block.
        count: removals.
        text_input: the text.
        samples: sequences that maps are fitted on.
        length: T.

    Raises:
        UserError: as `removals`, `MomentsText.cut` and `MomentFiles.make`.
    """
    checkpoint = open_checkpoint(folder)
    text = MomentsText.cut(checkpoint, text_input, samples, length)
    tokens, source = texts.cut(folder, text_input, length, SAMPLES, skip=samples + HELD_OUT)
    path = checkpoint.calib / f"greedy-linear-{kind}.json"
    request = _request(checkpoint, kind, tokens, source.replaced(origin=text_input.origin(path)))

    def race() -> racing.Race:
        reference = Reference(folder, load=FAST)
        maps = stand_ins.linear_maps(checkpoint, reference, kind, text)
        return racing.Race(reference, kind, tokens, maps)

    return _order(path, request.replaced(maps_of=text.source.ids), count, race)


def _request(checkpoint: Checkpoint, kind: str, tokens: texts.Tokens, source: TextSource) -> GreedyRequest:
    samples, length = tokens.shape
    return GreedyRequest(
        model=checkpoint.model,
        weights=checkpoint.identity,
        contents=checkpoint.contents,
        kind=kind,
        samples=samples,
        length=length,
        every=racing.EVERY,
        doubt=racing.DOUBT,
        texts=source,
    )


def _order(
    path: Path, request: GreedyRequest, count: int, make_race: Callable[[], racing.Race]
) -> GreedyRecord:
    """The order in a file, measured on where it is shorter than `count`."""
    with store.lock(path.parent):
        known = records.read_same(GreedyRecord, path, request)
        if known is not None and len(known.steps) >= count:
            return known
        race = make_race()
        if known is None:
            known = GreedyRecord(**dict(request), base_loss=float(np.mean(race.losses(BASE))))
        return _extended(known, race, count, lambda record: store.write_json(path, record.plain()))


def _extended(
    record: GreedyRecord, race: racing.Race, count: int, save: Callable[[GreedyRecord], None]
) -> GreedyRecord:
    """The order with `count` removals, saved after every one."""
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("removals", total=count, completed=len(record.steps))
        while len(record.steps) < count:
            removed = BASE
            for step in record.steps:
                removed |= SkipSet.parse(step.removed)
            step = race.run(removed)
            record = record.replaced(
                steps=(*record.steps, step),
                flops=record.flops + race.flops,
                plain_flops=record.plain_flops + race.plain_flops,
            )
            save(record)
            bar.advance(task)
    return record
