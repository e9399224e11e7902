"""Selectors: rules that turn (kind, count, statistics) into a skip set. One rule a file.

The file's name, with '-' for '_', is the rule's name. A rule is a function `choose(question) -> Choice`.
Statistics are read when a rule asks for them, and only then.
"""

from __future__ import annotations

import importlib
import logging
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from pipeline.calib import similarity
from pipeline.calib.evolution.options import EvoOptions
from pipeline.models import texts
from pipeline.store.records import CompensationSettings
from pipeline.types import KINDS, Provider, SkipSet, UserError

if TYPE_CHECKING:
    from pipeline.calib import search
    from pipeline.calib.evolution.space import Space
    from pipeline.store.records import EvoRecord, GreedyRecord

log = logging.getLogger(__name__)

OPTIONS = ("seed", "tokens", "texts", "dataset", "samples", "length")
"""Options of `select` that not every rule reads. A rule's module names its own as READS; those of `evo` alone
are `EvoOptions`."""
MEASURES = ("texts", "dataset", "samples", "length")
"""Those of rules that run the model themselves."""
RUNNERS_UP = 20
"""Sets that a search gives beside its choice, the choice included."""
COMPENSATION_SAMPLES = CompensationSettings().samples
SHORT = 64
"""Sequences that missing similarity statistics are measured on; `pipeline calibrate` takes more."""


class ModelStatistics:
    """What has been learned of one checkpoint, read when it is asked for.

    Args:
        folder: the checkpoint; None where only rules without statistics are asked.
        text_input: the text that `greedy` and `evo` measure on, and `residual` and `greedy-linear` fit maps
            on.
        samples: sequences of that text; None: 32 for `greedy`, 8 for `evo`; 48 for the other two, as for
            `compensate`.
        length: tokens of each.
        tokens: 'final' or 'mean': where `angular` reads the distance.
        device: that these rules run the model on.

    Raises:
        UserError: `tokens` is neither.
    """

    def __init__(
        self,
        folder: Path | None = None,
        text_input: texts.TextInput = texts.OWN,
        samples: int | None = None,
        length: int = 256,
        tokens: str = "final",
        device: Provider = "cpu",
    ) -> None:
        if tokens not in ("final", "mean"):
            raise UserError(f"--tokens {tokens} is not known; final or mean")
        self.folder, self.tokens, self.device = folder, tokens, device
        self.text_input, self.samples, self.length = text_input, samples, length

    @cached_property
    def similarity(self) -> similarity.Similarity:
        """The similarity statistics; a short cut of the text is measured now where there are none.

        Raises:
            UserError: they are of other weights, says the command that makes them; or as `calibrate`.
        """
        folder = self._checkpoint()
        if not similarity.is_there(folder):
            from pipeline.calib import calibrate  # loads torch: only where a model must run

            settings = calibrate.CalibrationSettings(self.samples or SHORT, self.length, device=self.device)
            size = f"{settings.samples} × {settings.length} tokens, {self.device}"
            log.info("%s has no similarity statistics yet; measuring them now (%s)", folder.name, size)
            calibrate.calibrate(folder, self.text_input, settings)
        return similarity.of_checkpoint(folder)

    def removals(self, kind: str, count: int) -> GreedyRecord:
        """The greedy order of at least `count` removals; measured now where it is not known yet."""
        return self._search().removals(kind, count)

    def compensated_removals(self, kind: str, count: int) -> GreedyRecord:
        """The greedy order with linear maps in the place of what is gone; measured now where needed."""
        return self._search(COMPENSATION_SAMPLES).compensated_removals(kind, count)

    def residuals(self, kind: str) -> dict[str, float]:
        """What the best linear map leaves over of each candidate; missing moments are gathered now."""
        from pipeline.calib.compensation import residuals  # loads torch: only where a model must run

        samples = COMPENSATION_SAMPLES if self.samples is None else self.samples
        return residuals.residuals(
            self._checkpoint(), kind, self.text_input, samples, self.length, self.device
        )

    def evolved(
        self, space: Space, start: Callable[[], SkipSet], seed: int, options: EvoOptions
    ) -> EvoRecord:
        """The evolutionary search over a space of masks; it runs now where it is not finished.

        Args:
            space: of the masks.
            start: gives the set that it begins with.
            seed: of all that is drawn.
            options: its limits, and whether maps stand in for what is gone.
        """
        from pipeline.calib.evolution import search  # loads torch: only where a model must run

        samples = search.SAMPLES if self.samples is None else self.samples
        evolution = search.EvoSearch(self._checkpoint(), self.text_input, samples, self.length, self.device)
        return evolution.run(space, start(), seed, options)

    def _search(self, samples: int | None = None) -> search.GreedySearch:
        """The greedy search on this text; of so many sequences where nobody said how many."""
        from pipeline.calib import search  # loads torch: only where a model must run

        wanted = [number for number in (self.samples, samples, search.SAMPLES) if number is not None]
        return search.GreedySearch(self._checkpoint(), self.text_input, wanted[0], self.length, self.device)

    def _checkpoint(self) -> Path:
        if self.folder is None:
            raise UserError("this selector needs the statistics of a model; name the model")
        return self.folder


@dataclass(frozen=True, slots=True)
class Question:
    """How many sublayers of which kind, of what model.

    Attributes:
        kind: attn, mlp or block.
        count: n, 0 ≤ n ≤ L.
        num_layers: L.
        statistics: of the model.
        seed: of rules that draw.
        evo: how `evo` searches.
        model: its name as it was typed, for `published`.
    """

    kind: str
    count: int
    num_layers: int
    statistics: ModelStatistics
    seed: int = 0
    evo: EvoOptions = field(default_factory=EvoOptions)
    model: str | None = None


Ranked = tuple[tuple[str, float], ...]
"""(what, value of its statistic), the best to leave out first."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A skip set and why.

    Attributes:
        skip: what goes.
        statistic: what the rule went by, in words; '' where it looked at nothing.
        chosen: what goes, by value; stays: what does not, the nearest first.
        note: what else a person should know of the choice.
        runners_up: of a rule that searches, the distinct sets that it measured best and their values, the
            choice first, RUNNERS_UP at most; `greedy`'s last step keeps longest what came nearest.
    """

    skip: SkipSet
    statistic: str = ""
    chosen: Ranked = ()
    stays: Ranked = ()
    note: str = ""
    runners_up: tuple[tuple[SkipSet, float], ...] = ()


def names() -> list[str]:
    """The rules that there are."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def choose(name: str, question: Question) -> Choice:
    """What the named selector chooses.

    Args:
        name: the rule.
        question: what it is asked.

    Raises:
        UserError: no such selector, the count does not fit the model, the seed is negative, the selector
            lacks its statistics, or it is not evo and evo's options were typed.
    """
    rule = _module(name)
    if question.kind not in KINDS:
        raise UserError(f"{question.kind!r} is not a kind of sublayer; choose from {', '.join(KINDS)}")
    if not 0 <= question.count <= question.num_layers:
        raise UserError(f"--count {question.count} does not fit: the model has {question.num_layers} layers")
    refuse_seed(question.seed)
    question.evo.belong_to(name)
    choice: Choice = rule.choose(question)
    return choice


def options_of(rule: str, start: str | None = None) -> set[str]:
    """Those of OPTIONS that a rule reads, or the rule that `evo` starts with.

    Raises:
        UserError: no such selector.
    """
    own = set[str](getattr(_module(rule), "READS", ()))
    return own | options_of(start) if rule == "evo" and start in names() else own


def refuse_unread(option: str, rule: str, start: str | None = None) -> None:
    """Refuses an option that a rule does not read.

    Args:
        option: one of OPTIONS.
        rule: the rule.
        start: of `evo`, where it names a rule.

    Raises:
        UserError: it would be passed over; or no such selector.
    """
    if option not in options_of(rule, start):
        readers = " or ".join(name for name in names() if option in options_of(name))
        raise UserError(f"--{option} belongs to --select {readers}, and the rule is {rule:.40}; leave it out")


def runs_the_model(rule: str) -> bool:
    """Whether a rule runs the model itself."""
    return set(MEASURES) <= options_of(rule)


def _module(rule: str) -> ModuleType:
    if rule not in names():
        raise UserError(f"no selector {rule!r:.80}; choose from {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{rule.replace('-', '_')}")


def refuse_seed(seed: int) -> None:
    """Refuses a seed that no record holds; a recipe takes the same ones.

    Raises:
        UserError: it is negative, or has more than 32 bits.
    """
    if seed < 0:
        raise UserError(f"--seed {seed} is negative")
    if seed >= 2**32:
        raise UserError(f"--seed {seed} is above {2**32 - 1}")


def by_rank(statistic: str, values: dict[str, float], count: int) -> Choice:
    """The candidates of the highest values; of equal ones the deeper, for the papers found depth redundant.

    Args:
        statistic: what the values are, in words.
        values: candidate (the name of a skip set) → value.
        count: how many go.
    """
    order = sorted(values, key=lambda name: (-values[name], -_depth(name), name))
    skip = SkipSet()
    for name in order[:count]:
        skip |= SkipSet.parse(name)
    ranked = tuple((name, values[name]) for name in order)
    return Choice(skip, statistic, ranked[:count], ranked[count:])


def _depth(name: str) -> int:
    skip = SkipSet.parse(name)
    return max(skip.attention + skip.mlp)
