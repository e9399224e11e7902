"""The greedy order of removals: how the loss rises as sublayers go one at a time, as in SLEB and BlockPruner.

Every step measures each candidate that is still there and removes the one whose absence costs least
(`race.py`). The order is kept in calib/<model>/greedy-<kind>.json; a longer one goes on from a shorter one.

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
from pipeline.models import texts
from pipeline.models.checkpoint import open_checkpoint
from pipeline.models.reference import FAST, Reference
from pipeline.store import records
from pipeline.store.records import GreedyRecord, GreedyRequest
from pipeline.types import BASE, SkipSet


def removals(
    folder: Path, kind: str, count: int, text_input: texts.TextInput, samples: int = 32, length: int = 256
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
    path = checkpoint.calib / f"greedy-{kind}.json"
    tokens, source = texts.cut(folder, text_input, length, samples)
    request = GreedyRequest(
        model=checkpoint.model,
        weights=checkpoint.identity,
        contents=checkpoint.contents,
        kind=kind,
        samples=samples,
        length=length,
        every=racing.EVERY,
        doubt=racing.DOUBT,
        texts=source.replaced(origin=text_input.origin(path)),
    )
    with store.lock(path.parent):
        known = records.read_same(GreedyRecord, path, request)
        if known is not None and len(known.steps) >= count:
            return known
        race = racing.Race(Reference(folder, load=FAST), kind, tokens)
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
