"""The evolutionary search: generation after generation, kept on disk after each, until it may end.

Its record is calib/<model>/evo-<kinds>-<digest of the request>[.cuda].json: every request has a file of its
own, and goes on where it was. What a generation draws hangs on the seed and its number alone, and what is
measured of a set on nothing beside it; so a search that was stopped and goes on gives what one without a stop
gives.

Legend: N sequences, T tokens.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from pipeline import store
from pipeline.calib.compensation import stand_ins
from pipeline.calib.compensation.moment_files import HELD_OUT, MomentsText
from pipeline.calib.evolution import divergences, selection
from pipeline.calib.evolution.divergences import Divergences
from pipeline.calib.evolution.options import GENERATIONS, PATIENCE, EvoOptions
from pipeline.calib.evolution.space import Space
from pipeline.models import texts
from pipeline.models.checkpoint import open_checkpoint
from pipeline.models.reference import FAST, Reference
from pipeline.store import records
from pipeline.store.records import CompensationSettings, EvoRecord, EvoRequest, EvoStop, TextSource
from pipeline.types import Provider, SkipSet, UserError

SAMPLES = 8
"""Sequences that the last comparison of a generation is made on, by default."""
MAPS = CompensationSettings()
"""Maps are fitted on the text that `compensate` fits them on by default."""


class EvoSearch:
    """Evolutionary searches over one checkpoint on one text.

    Args:
        folder: the checkpoint.
        text_input: the text.
        samples: N.
        length: T.
        device: that the model runs on.
    """

    def __init__(
        self,
        folder: Path,
        text_input: texts.TextInput,
        samples: int = SAMPLES,
        length: int = 256,
        device: Provider = "cpu",
    ) -> None:
        self.checkpoint, self.text_input, self.device = open_checkpoint(folder), text_input, device
        self.samples, self.length = samples, length

    def run(self, space: Space, start: SkipSet, seed: int, options: EvoOptions) -> EvoRecord:
        """The search, as far as the options let it go.

        Args:
            space: of the masks.
            start: the first parent, in the space.
            seed: of all that is drawn.
            options: its limits, and whether maps stand in for what is gone.

        Raises:
            UserError: too little text, or a loss that is not finite; with maps also as `MomentFiles.make`.
        """
        text = self._maps_text() if options.compensated else None
        tokens, source = self._tokens(text)
        request = self._request(space, start, seed, source, text.source.ids if text else None)
        path, limits = self._path(request), EvoLimits(options)
        request = request.replaced(texts=source.replaced(origin=self.text_input.origin(path)))
        with store.lock(path, make=False):  # the record's own: other rules go on meanwhile
            known = _of_space(records.read_same(EvoRecord, path, request), space)
            if known is not None and (stopped := limits.reached(known)):
                return known.until(limits.generations).replaced(stopped=stopped)
            measures = self._divergences(tokens, space, text)
            if known is None:
                value = float(measures.of(start).mean())
                known = EvoRecord(**dict(request), start_value=value)
            return _evolved(known, space, measures, limits, path)

    def _request(
        self, space: Space, start: SkipSet, seed: int, source: TextSource, maps_of: str | None
    ) -> EvoRequest:
        return EvoRequest(
            model=self.checkpoint.model,
            weights=self.checkpoint.identity,
            contents=self.checkpoint.contents,
            kinds=space.kinds,
            front=space.front,
            start=start.name,
            seed=seed,
            samples=self.samples,
            length=self.length,
            every=divergences.EVERY,
            first=selection.first_rows(self.samples),
            offspring=selection.OFFSPRING,
            finalists=selection.FINALISTS,
            maps_of=maps_of,
            texts=source,
            device=self.device,
        )

    def _maps_text(self) -> MomentsText:
        return MomentsText.cut(self.checkpoint, self.text_input, MAPS.samples, MAPS.length)

    def _tokens(self, maps_text: MomentsText | None) -> tuple[texts.Tokens, TextSource]:
        """[N, T] that candidates are measured on; behind all that `compensate` reads, where maps are."""
        skip = 0
        if maps_text:  # in pieces of T tokens, one of which may be a BOS
            skip = -(-(MAPS.samples + HELD_OUT) * MAPS.length // max(1, self.length - 1))
        return texts.cut(self.checkpoint.folder, self.text_input, self.length, self.samples, skip=skip)

    def _path(self, request: EvoRequest) -> Path:
        """The file of a request; the name of a text is no part of what it is."""
        same = request.replaced(texts=request.texts.replaced(origin=""))
        digest = store.text_digest(json.dumps(same.plain(), sort_keys=True))[:12]
        name = f"evo-{'-'.join(request.kinds)}-{digest}.json"
        return store.measured_on(self.checkpoint.calib / name, self.device)

    def _divergences(self, tokens: texts.Tokens, space: Space, maps_text: MomentsText | None) -> Divergences:
        reference = Reference(self.checkpoint.folder, load=FAST, device=self.device)
        if maps_text is None:
            return Divergences(reference, tokens)
        kind = space.kinds[0] if len(space.kinds) == 1 else "block"
        return Divergences(
            reference, tokens, stand_ins.linear_maps(self.checkpoint, reference, kind, maps_text)
        )


class EvoLimits:
    """When a search ends.

    Attributes:
        generations: at most.
        seconds: of search; None without a limit.
    """

    def __init__(self, options: EvoOptions) -> None:
        self.generations = GENERATIONS if options.generations is None else options.generations
        self.seconds = None if options.minutes is None else options.minutes * 60

    def reached(self, record: EvoRecord) -> EvoStop | None:
        """Why a search ends here; None where it goes on."""
        if len(record.generations) >= self.generations:
            return "generations"
        if record.stopped == "exhausted":
            return "exhausted"
        if record.idle >= PATIENCE:
            return "patience"
        if self.seconds is not None and record.seconds >= self.seconds:
            return "minutes"
        return None


def _of_space(record: EvoRecord | None, space: Space) -> EvoRecord | None:
    """The record where a search in the space writes such; one that was changed by hand is made again."""
    if record is None:
        return None
    known = {record.start: record.start_value}
    value = record.start_value
    for one in record.generations:
        known |= dict(one.measured)
        if known.get(one.best) != one.value or one.value > value:
            return None
        value = one.value
    return record if all(_is_of(name, space) for name in known) else None


def _is_of(name: str, space: Space) -> bool:
    """Whether a text names a set of the space, as the set itself is named."""
    try:
        skip = SkipSet.parse(name)
    except UserError:
        return False
    return skip.name == name and skip in space


def _evolved(
    record: EvoRecord, space: Space, measures: Divergences, limits: EvoLimits, path: Path
) -> EvoRecord:
    """The record with further generations, saved after every one."""
    before, begun = record.seconds, time.monotonic()
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=limits.generations, completed=len(record.generations))
        while not (stopped := limits.reached(record)):
            best, value = record.best
            bar.update(task, completed=len(record.generations), description=f"KL {value:.4f} {best:.40}")
            generator = np.random.default_rng([record.seed, len(record.generations)])
            generation = selection.next_generation(space, record.measured, record.best, measures, generator)
            seconds = before + time.monotonic() - begun
            if generation is None:
                record = record.replaced(stopped="exhausted", seconds=seconds)
            else:
                generations = (*record.generations, generation)
                record = record.replaced(generations=generations, stopped=None, seconds=seconds)
                store.write_json(path, record.plain())
    record = record.replaced(stopped=stopped)
    store.write_json(path, record.plain())
    return record
