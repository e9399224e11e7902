"""What a GPU was doing beside a measurement, as its driver told."""

from __future__ import annotations

from pipeline.store.records.base import Count, Record


class GpuState(Record):
    """One reading of nvidia-smi; a field is None where the driver does not tell.

    Attributes:
        sm_mhz, memory_mhz: clocks; sm_most_mhz: the highest that the card has.
        watts: drawn; watts_limit: the most that it may draw.
        celsius: of the chip.
        busy: % of the last moment in which kernels ran, of any process.
        used_mb: MiB of its memory in use, by any process.
        reasons: why its clocks are lower than they could be.
    """

    sm_mhz: float | None = None
    sm_most_mhz: float | None = None
    memory_mhz: float | None = None
    watts: float | None = None
    watts_limit: float | None = None
    celsius: float | None = None
    busy: float | None = None
    used_mb: float | None = None
    reasons: tuple[str, ...] = ()


class GpuLoad(Record):
    """A GPU around and during the measurement of one length.

    Attributes:
        before, after: it at rest, when nothing of this measurement ran.
        sm_mhz, watts, celsius: lowest, median and highest while it ran; None where the driver does not tell.
        readings: that these come from.
        reasons: why its clocks were lower than they could be → share of the readings.
        processes: of others, before or after: their number and name.
        problems: that make its times no measurement of this card alone; in words.
    """

    before: GpuState
    after: GpuState
    sm_mhz: tuple[float, float, float] | None = None
    watts: tuple[float, float, float] | None = None
    celsius: tuple[float, float, float] | None = None
    readings: Count = 0
    reasons: dict[str, float] = {}
    processes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
