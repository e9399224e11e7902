"""Loss and divergence of variants on text that nothing before has read, each measured once and kept.

Legend: N sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline import store
from pipeline.calib import similarity
from pipeline.calib.compensation.moment_files import HELD_OUT
from pipeline.calib.evolution.divergences import EVERY, Divergences
from pipeline.models import compensation, texts, tokenizer
from pipeline.models.checkpoint import open_checkpoint
from pipeline.store import records
from pipeline.store.records import (
    CompensationSettings,
    HeldOutLosses,
    HeldOutRecord,
    HeldOutRequest,
    SimilarityRecord,
)
from pipeline.types import BASE, Provider, SkipSet, Variant

if TYPE_CHECKING:
    from pipeline.calib.selectors import ModelStatistics
    from pipeline.models.reference import Reference

LENGTH = 256
"""T."""
SEARCHED = 64
"""Sequences behind those of a compensation that searches measure losses on, at most."""


@dataclass(frozen=True, slots=True)
class HeldOutText:
    """Consecutive sequences of a text.

    Attributes:
        text_input: the text.
        skip: sequences before them.
        samples: N.
    """

    text_input: texts.TextInput
    skip: int
    samples: int

    def behind(self, samples: int) -> HeldOutText:
        """The next sequences of the same text.

        Args:
            samples: how many.
        """
        return HeldOutText(self.text_input, self.skip + self.samples, samples)


def unread(statistics: ModelStatistics, samples: int) -> HeldOutText:
    """The first sequences behind all that calibration, searches and compensations read of a text.

    Whatever rule was asked, these are the same sequences, so that what rules chose can be compared; only a
    rule that was told to read more moves them.

    Args:
        statistics: of the model, and the text.
        samples: N.
    """
    settings, text_input, folder = CompensationSettings(), statistics.text_input, statistics.folder
    assert folder is not None, "rules without a model measure nothing"
    most = settings.samples + HELD_OUT + SEARCHED + (statistics.samples or 0)
    read = most * max(settings.length, statistics.length)
    checkpoint = open_checkpoint(folder)
    record = records.read_if_valid(SimilarityRecord, similarity.paths(checkpoint.calib)[0])
    if record is not None:
        _, source = texts.cut(folder, text_input, LENGTH, 1)
        is_same = record.texts.sha256 == source.sha256 is not None
        is_same |= text_input.dataset is not None and record.texts.origin == text_input.dataset
        read = max(read, record.tokens * is_same)
    body = LENGTH - len(tokenizer.load(folder).prefix)  # a BOS before each sequence is no part of the text
    return HeldOutText(text_input, -(-read // body), samples)


class HeldOut:
    """Measures variants of a model on one text.

    Args:
        folder: the checkpoint.
        text: the text; T is LENGTH.
        device: that the model runs on.

    Raises:
        UserError: the text is too short.
    """

    def __init__(self, folder: Path, text: HeldOutText, device: Provider = "cpu") -> None:
        self.folder, self.device = folder, device
        self.tokens, source = texts.cut(folder, text.text_input, LENGTH, text.samples, skip=text.skip)
        checkpoint = open_checkpoint(folder)
        name = f"held-out-{str(source.ids)[:12]}.json"
        self.path = store.measured_on(checkpoint.calib / name, device)
        self.request = HeldOutRequest(
            model=checkpoint.model,
            weights=checkpoint.identity,
            contents=checkpoint.contents,
            device=device,
            texts=source.replaced(origin=text.text_input.origin(self.path)),
            samples=text.samples,
            length=LENGTH,
            every=EVERY,
        )

    def bare(self, skips: Sequence[SkipSet]) -> dict[SkipSet, HeldOutLosses]:
        """Skip sets with nothing in the place of what they skip; their common beginnings are computed once.

        Raises:
            UserError: a loss is not finite.
        """
        known = self._known()
        wanted = {skip: known.get(skip.name) for skip in skips}
        missing = [skip for skip, losses in wanted.items() if losses is None or losses.overlay is not None]
        if missing:
            self._divergences.measure(missing)
            self._save({skip.name: _losses(self._divergences, skip, None) for skip in missing})
        known = self._known()
        return {skip: known[skip.name] for skip in skips}

    def compensated(self, variant: Variant, overlay: Path) -> HeldOutLosses:
        """A variant with the maps and folded weights of a file in the place of what it skips.

        Args:
            variant: its name and skip set.
            overlay: the file.

        Raises:
            UserError: a loss is not finite.
        """
        from pipeline.calib.compensation import trial
        from pipeline.calib.compensation.overlay import Overlay

        digest = store.sha256(overlay)
        known = self._known().get(variant.name)
        if known is not None and known.overlay == digest:
            return known
        weights, maps = compensation.read(overlay, variant.skip)
        measured = self._divergences.with_maps(maps)
        with trial.installed(self.reference, Overlay(BASE, weights=weights)):
            losses = _losses(measured, variant.skip, digest)
        self._save({variant.name: losses})
        return losses

    @cached_property
    def reference(self) -> Reference:
        """The whole model, in fp32; loaded where something is not known yet."""
        from pipeline.models.reference import FAST, Reference

        return Reference(self.folder, load=FAST, device=self.device)

    @cached_property
    def _divergences(self) -> Divergences:
        """With the whole model's own streams, which changed weights must not change."""
        divergences = Divergences(self.reference, self.tokens)
        divergences.measure([BASE])
        return divergences

    def _known(self) -> dict[str, HeldOutLosses]:
        record = records.read_same(HeldOutRecord, self.path, self.request)
        return dict(record.variants) if record else {}

    def _save(self, measured: dict[str, HeldOutLosses]) -> None:
        with store.lock(self.path.parent):
            record = HeldOutRecord(**dict(self.request), variants=self._known() | measured)
            store.write_json(self.path, record.plain())


def mean(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error, None of a single value."""
    if len(values) < 2:
        return float(np.mean(values)), None
    return float(np.mean(values)), float(np.std(values, ddof=1) / len(values) ** 0.5)


def _losses(divergences: Divergences, skip: SkipSet, overlay: str | None) -> HeldOutLosses:
    return HeldOutLosses(
        overlay=overlay,
        losses=tuple(map(float, divergences.losses(skip))),
        divergences=tuple(map(float, divergences.of(skip))),
    )
