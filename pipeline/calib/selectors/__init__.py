"""Selectors: rules that turn (kind, count, statistics) into a skip set. One rule a file; the file's name, '_' for '-', is its name.

A selector is a function `choose(question) -> Choice`. Statistics are read when a rule asks for them, and only then.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.calib import similarity
from pipeline.models import texts
from pipeline.types import SkipSet, UserError, count_of, parse_layers

if TYPE_CHECKING:
    from pipeline.calib import search


class Statistics:
    """What has been learnt of one checkpoint, read when it is asked for.

    Args:
        folder: the checkpoint; None where only rules that need no statistics can be asked.
        source, samples, length: the text that `greedy` measures losses on.
        tokens: 'final' or 'mean': where `angular` reads the distance.
    """

    def __init__(
        self,
        folder: Path | None = None,
        source: texts.Source = texts.OWN,
        samples: int = 32,
        length: int = 256,
        tokens: str = "final",
    ) -> None:
        if tokens not in ("final", "mean"):
            raise UserError(f"--tokens {tokens} is not known; final or mean")
        self.folder, self.source, self.samples, self.length, self.tokens = (
            folder,
            source,
            samples,
            length,
            tokens,
        )

    @cached_property
    def similarity(self) -> similarity.Similarity:
        """The similarity statistics.

        Raises:
            UserError: there are none of this model; says the command that makes them.
        """
        return similarity.of_checkpoint(self._of())

    def removals(self, kind: str, count: int) -> search.Removals:
        """The greedy order of at least `count` removals; measured now where it is not known yet."""
        from pipeline.calib import search  # loads torch: only where a model must run

        return search.removals(self._of(), kind, count, self.source, self.samples, self.length)

    def _of(self) -> Path:
        if self.folder is None:
            raise UserError("this selector needs the statistics of a model; name the model")
        return self.folder


@dataclass(frozen=True, slots=True)
class Question:
    """How many sublayers of which kind, of what model.

    Attributes:
        kind: attn, mlp or block.
        count: n, 0 ≤ n ≤ L.
        seed: of rules that draw.
    """

    kind: str
    count: int
    num_layers: int
    statistics: Statistics
    seed: int = 0


Ranked = tuple[tuple[str, float], ...]
"""(what, value of its statistic), the best to leave out first."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A skip set and why.

    Attributes:
        statistic: what the rule went by, in words; '' where it looked at nothing.
        chosen: what goes; stays: what does not, the nearest first.
        note: what else a person should know of the choice.
    """

    skip: SkipSet
    statistic: str = ""
    chosen: Ranked = ()
    stays: Ranked = ()
    note: str = ""


def names() -> list[str]:
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__))


def choose(name: str, question: Question) -> Choice:
    """What the named selector chooses.

    Raises:
        UserError: no such selector, the count does not fit the model, or the selector lacks its statistics.
    """
    if name not in names():
        raise UserError(f"no selector {name!r}; choose from {', '.join(names())}")
    if question.kind not in ("attn", "mlp", "block"):
        raise UserError(f"{question.kind!r} is not a kind of sublayer; choose from attn, mlp, block")
    if not 0 <= question.count <= question.num_layers:
        raise UserError(f"--count {question.count} does not fit: the model has {question.num_layers} layers")
    room = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    choice: Choice = room.choose(question)
    return choice


def by_rank(statistic: str, values: dict[str, float], count: int) -> Choice:
    """The `count` candidates (names of skip sets) of the highest values; of equal ones the deeper: the papers found depth redundant."""
    order = sorted(values, key=lambda name: (-values[name], -_depth(name), name))
    skip = SkipSet()
    for name in order[:count]:
        skip |= SkipSet.parse(name)
    ranked = tuple((name, values[name]) for name in order)
    return Choice(skip, statistic, ranked[:count], ranked[count:])


def _depth(name: str) -> int:
    skip = SkipSet.parse(name)
    return max(skip.attention + skip.mlp)


def skip_set(
    skip: str | None,
    frac: float | None,
    count: int | None,
    layers: str | None,
    select: str | None,
    num_layers: int,
    statistics: Statistics | None = None,
    seed: int = 0,
) -> SkipSet:
    """What the options of `pipeline export` mean.

    Args:
        skip: a kind (attn, mlp, block) with one of frac, count or layers; or a whole skip set, 'attn20-28+mlp25-31'.
        statistics: of the model, for selectors that need some.

    Raises:
        UserError: options that contradict or lack each other, layers that do not exist, or statistics that are not there.
    """
    given = [
        name
        for name, value in (("--frac", frac), ("--count", count), ("--layers", layers))
        if value is not None
    ]
    if skip is None:
        if given or select:
            raise UserError(f"{given[0] if given else '--select'} needs --skip attn, mlp or block")
        return SkipSet()
    if skip not in ("attn", "mlp", "block"):
        if given or select:
            raise UserError(
                f"--skip {skip} names its layers already; leave {given[0] if given else '--select'} out"
            )
        return SkipSet.parse(skip).within(num_layers)
    if len(given) != 1:
        what = " and ".join(given) if given else "none"
        raise UserError(f"--skip {skip} takes exactly one of --frac, --count and --layers; given: {what}")
    if layers is not None:
        if select:
            raise UserError("--layers names the layers already; leave --select out")
        return SkipSet.of(skip, parse_layers(layers)).within(num_layers)
    number = count if count is not None else count_of(frac or 0.0, num_layers)
    return choose(select or "last", Question(skip, number, num_layers, statistics or Statistics(), seed)).skip
