"""What a selector reads: nothing, the similarity statistics, or losses that it measures itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NoReturn

from pipeline.calib import selectors
from pipeline.calib.evolution.options import EvoOptions
from pipeline.calib.evolution.space import Space
from pipeline.types import SkipSet

Reads = Literal["calibrate", "measure", "both"]
"""'calibrate': the statistics that `pipeline calibrate` writes; 'measure': losses of the model itself."""


class _StatisticRead(Exception):
    """A rule has read a statistic."""

    def __init__(self, reads: Reads) -> None:
        super().__init__(reads)
        self.reads = reads


class _Probe(selectors.ModelStatistics):
    """Statistics that report which of them a rule reads, in place of a value."""

    @property
    def similarity(self) -> NoReturn:  # type: ignore[override]
        raise _StatisticRead("calibrate")

    def removals(self, kind: str, count: int) -> NoReturn:  # noqa: ARG002 - the signature is Statistics'
        raise _StatisticRead("measure")

    def compensated_removals(self, kind: str, count: int) -> NoReturn:  # noqa: ARG002 - likewise
        raise _StatisticRead("measure")

    def residuals(self, kind: str) -> NoReturn:  # noqa: ARG002 - likewise
        raise _StatisticRead("measure")

    def evolved(
        self,
        space: Space,  # noqa: ARG002 - likewise
        start: Callable[[], SkipSet],
        seed: int,  # noqa: ARG002 - likewise
        options: EvoOptions,  # noqa: ARG002 - likewise
    ) -> NoReturn:
        try:
            start()
        except _StatisticRead as statistic:
            raise _StatisticRead("measure" if statistic.reads == "measure" else "both") from None
        raise _StatisticRead("measure")


def reads(select: str, kind: str) -> Reads | None:
    """What a rule reads before it can choose; None where it needs the number of layers alone.

    Raises:
        UserError: the rule does not choose that kind.
    """
    try:
        selectors.choose(select, selectors.Question(kind, 1, 4, _Probe()))
    except _StatisticRead as statistic:
        return statistic.reads
    return None
