"""The greedy order of removals: how the loss rises as sublayers go one at a time, as in SLEB and BlockPruner.

Every step measures each candidate that is still there and removes the one whose absence costs least
(`race.py`); with its linear map in its place, where `compensate` will put one. The order is kept in
calib/<model>/greedy-<kind>.json or greedy-linear-<kind>.json (on CUDA beside it, greedy-<kind>.cuda.json); a
longer one goes on from a shorter one.

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
from pipeline.types import BASE, Provider, SkipSet

SAMPLES = 32
"""Sequences that losses are measured on by default."""


class GreedySearch:
    """Greedy orders of one checkpoint on one text.

    Args:
        folder: the checkpoint.
        text_input: the text.
        samples: N, that losses are measured on, or that maps are fitted on.
        length: T.
        device: that the model runs on; what was measured on another is another order.
    """

    def __init__(
        self,
        folder: Path,
        text_input: texts.TextInput,
        samples: int = SAMPLES,
        length: int = 256,
        device: Provider = "cpu",
    ) -> None:
        self.folder, self.text_input, self.device = folder, text_input, device
        self.samples, self.length = samples, length

    def removals(self, kind: str, count: int) -> GreedyRecord:
        """An order of removals of a kind, `count` of them or more where more are known.

        Args:
            kind: attn, mlp or block.
            count: removals.

        Raises:
            UserError: too little text, fewer sublayers than `count`, or a loss that is no number.
        """
        checkpoint = open_checkpoint(self.folder)
        tokens, source = texts.cut(self.folder, self.text_input, self.length, self.samples)
        path, request = self._request(checkpoint, "greedy", kind, tokens, source)
        return _order(path, request, count, lambda: racing.Race(self._reference(), kind, tokens))

    def compensated_removals(self, kind: str, count: int) -> GreedyRecord:
        """An order as `removals`, with the best linear map in the place of all that is gone.

        Maps are fitted on the whole model, once; moments that are missing are gathered now, and `compensate`
        uses the same. Losses are measured on text behind all that `compensate` reads.

        Args:
            kind: attn, mlp or block.
            count: removals.

        Raises:
            UserError: as `removals`, `MomentsText.cut` and `MomentFiles.make`.
        """
        checkpoint = open_checkpoint(self.folder)
        text = MomentsText.cut(checkpoint, self.text_input, self.samples, self.length)
        skip = self.samples + HELD_OUT
        tokens, source = texts.cut(self.folder, self.text_input, self.length, SAMPLES, skip=skip)
        path, request = self._request(checkpoint, "greedy-linear", kind, tokens, source)

        def race() -> racing.Race:
            reference = self._reference()
            maps = stand_ins.linear_maps(checkpoint, reference, kind, text)
            return racing.Race(reference, kind, tokens, maps)

        return _order(path, request.replaced(maps_of=text.source.ids), count, race)

    def _reference(self) -> Reference:
        return Reference(self.folder, load=FAST, device=self.device)

    def _request(
        self, checkpoint: Checkpoint, name: str, kind: str, tokens: texts.Tokens, source: TextSource
    ) -> tuple[Path, GreedyRequest]:
        """(the order's file, what is to be in it)."""
        path = store.measured_on(checkpoint.calib / f"{name}-{kind}.json", self.device)
        samples, length = tokens.shape
        request = GreedyRequest(
            model=checkpoint.model,
            weights=checkpoint.identity,
            contents=checkpoint.contents,
            kind=kind,
            samples=samples,
            length=length,
            every=racing.EVERY,
            doubt=racing.DOUBT,
            texts=source.replaced(origin=self.text_input.origin(path)),
            device=self.device,
        )
        return path, request


def _order(
    path: Path, request: GreedyRequest, count: int, make_race: Callable[[], racing.Race]
) -> GreedyRecord:
    """The order in a file, measured on where it is shorter than `count`."""
    with store.lock(path, make=False):  # the record's own: other rules go on meanwhile
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
