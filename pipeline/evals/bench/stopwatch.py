"""Interleaved timing on a machine that others use too: disturbed samples are recognised and taken again.

A sample is disturbed when other work (or the hypervisor) used the processors meanwhile: the time that they
were not idle, less this process's own CPU time, is beyond `allowance`. Idle time is read, not busy time: the
kernel measures the former and samples the latter once a tick (60 runs of 30 ms on a loaded machine: 8 ms
between the 5th and 90th percentile, against 24 ms). Only Linux gives idle time; elsewhere nothing is
recognised.
"""

from __future__ import annotations

import gc
import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.store import processes

Run = Callable[[int], object]
"""Runs one sequence, given its number; its feeds are made before."""

TICK = 0.012
"""Seconds: /proc/stat counts in hundredths, so that one reading is off by up to 10 ms."""
SHARE = 0.06
"""Share of the processors' time that other work may use in a clean sample."""
REPEATS = 3
"""How often one disturbed sample is taken again at most."""
PAUSE = 0.02
"""Seconds before a repeat, times the repeats so far: what disturbed may pass."""
RESAMPLES = 400
"""Bootstrap samples behind an interval."""
_STAT = Path("/proc/stat")


class Clock(Protocol):
    """Where the seconds come from; tests bring their own."""

    processors: int

    def wall(self) -> float:
        """Seconds since an arbitrary start."""
        ...

    def own(self) -> float:
        """CPU seconds of this process, all threads."""
        ...

    def idle(self) -> float | None:
        """Idle seconds of this process's processors, summed; None where the system does not give them."""
        ...

    def sleep(self, seconds: float) -> None:
        """Waits."""
        ...


class SystemClock:
    """The machine's clocks, over the processors that this process may use.

    psutil reads the same file in the same unit, but its list of single processors has no numbers, so that a
    processor which is offline would shift the others.

    Args:
        stat: the kernel's file of processor times.
    """

    def __init__(self, stat: Path = _STAT) -> None:
        usable = processes.usable_processors()
        self.processors = len(usable)
        self._stat = stat
        # The sum over all processors is rounded once, the lines of single processors once each.
        self._lines = {"cpu"} if self.processors == os.cpu_count() else {f"cpu{n}" for n in usable}

    def wall(self) -> float:
        """Seconds since an arbitrary start."""
        return time.perf_counter()

    def own(self) -> float:
        """CPU seconds of this process, all threads."""
        return time.process_time()

    def idle(self) -> float | None:
        """Idle seconds, waiting for disks included, of this process's processors; None beyond Linux."""
        if not self._stat.is_file():
            return None
        rows = [
            line.split()
            for line in self._stat.read_text(encoding="utf-8").splitlines()
            if line.startswith("cpu")
        ]
        ticks = sum(int(row[4]) + int(row[5]) for row in rows if row[0] in self._lines)
        return ticks / os.sysconf("SC_CLK_TCK")

    def sleep(self, seconds: float) -> None:
        """Waits."""
        time.sleep(seconds)


class Try(NamedTuple):
    """One run of one sequence.

    Attributes:
        excess: share of the processors that other work used beyond what is allowed; 0 for a clean sample.
        seconds: wall time.
    """

    excess: float
    seconds: float


@dataclass(slots=True)
class Samples:
    """The samples of one contestant.

    Attributes:
        seconds: one sample a sequence: the clean one, else of all tries the one that other work disturbed
            least.
        clean: whether that one is clean, in the same order.
        disturbed: how many samples were disturbed, the repeated ones too.
    """

    seconds: list[float] = field(default_factory=list)
    clean: list[bool] = field(default_factory=list)
    disturbed: int = 0

    def add(self, tries: list[Try]) -> None:
        """Adds what came of one sequence."""
        excess, seconds = min(tries)
        self.seconds.append(seconds)
        self.clean.append(excess <= 0)
        self.disturbed += sum(one.excess > 0 for one in tries)

    @property
    def kept_disturbed(self) -> int:
        """Sequences all of whose tries were disturbed."""
        return self.clean.count(False)

    @property
    def enough(self) -> bool:
        """Whether the clean samples can stand for the run: a quarter of the sequences, and at least five."""
        return self.clean.count(True) >= min(len(self.clean), max(5, -(-len(self.clean) // 4)))

    @property
    def trusted(self) -> list[float]:
        """What quantiles are taken from: the clean samples where there are enough, else all."""
        if not self.enough:
            return self.seconds
        return [seconds for seconds, clean in zip(self.seconds, self.clean, strict=True) if clean]


def allowance(seconds: float, processors: int) -> float:
    """CPU seconds that other work may use in a clean sample of so many seconds."""
    return max(TICK, SHARE * processors * seconds)


def interleave(
    runs: Sequence[Run],
    sequences: int,
    tick: Callable[[], object] | None = None,
    *,
    settle: float = 0.0,
    seed: int = 0,
    clock: Clock | None = None,
) -> list[Samples]:
    """Times every contestant on every sequence, in an order that is shuffled for each sequence.

    A disturbed sample is taken again at the end of its round, REPEATS times at most, and over the whole run
    as often as there are samples at most. No garbage is collected meanwhile.

    Args:
        runs: the contestants, warmed up.
        sequences: how many each runs.
        tick: called after each round, outside of what is timed.
        settle: seconds before each sample, for threads of this process that spin on after the one before.
        seed: of the shuffling.
        clock: the machine's by default.

    Returns:
        The contestants' samples, in the order of `runs`.
    """
    clock, rng = clock or SystemClock(), random.Random(seed)
    samples = [Samples() for _ in runs]
    repeats_left = sequences * len(runs)
    with _no_garbage_collection():
        for k in range(sequences):
            order = rng.sample(range(len(runs)), len(runs))
            tries = _round([(runs[n], k) for n in order], repeats_left, settle, clock)
            repeats_left -= sum(len(one) - 1 for one in tries)
            for n, one in zip(order, tries, strict=True):
                samples[n].add(one)
            if tick:
                tick()
    return samples


def warm_up(runs: Sequence[Run], seconds: float, clock: Clock) -> None:
    """Runs all contestants in turn for some time: a GPU at rest takes a while to raise its clocks.

    Args:
        runs: the contestants; each runs its first sequence.
        seconds: after which no further round begins.
        clock: the machine's.
    """
    start = clock.wall()
    while clock.wall() - start < seconds:
        for run in runs:
            run(0)


def _round(work: list[tuple[Run, int]], repeats_left: int, settle: float, clock: Clock) -> list[list[Try]]:
    """All tries of one sequence by every contestant, in the order of `work`."""
    tries: list[list[Try]] = [[] for _ in work]
    queue = deque(range(len(work)))
    while queue:
        n = queue.popleft()
        clock.sleep(settle + PAUSE * len(tries[n]))
        tries[n].append(_sample(*work[n], clock))
        if tries[n][-1].excess > 0 and len(tries[n]) <= REPEATS and repeats_left > 0:
            repeats_left -= 1
            queue.append(n)
    return tries


def _sample(run: Run, k: int, clock: Clock) -> Try:
    idle, own, start = clock.idle(), clock.own(), clock.wall()
    run(k)
    seconds, own, idle_after = clock.wall() - start, clock.own() - own, clock.idle()
    if idle is None or idle_after is None or seconds <= 0:
        return Try(0.0, seconds)
    capacity = clock.processors * seconds
    others = capacity - (idle_after - idle) - own
    return Try(max(0.0, others - allowance(seconds, clock.processors)) / capacity, seconds)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def speedup(base: Samples, other: Samples, seed: int = 0) -> tuple[float, float, float]:
    """How many times as fast `other` is: the ratio of the medians, and its 95 % interval.

    The interval is the percentile bootstrap's (Efron 1979): both sides are drawn again RESAMPLES times.

    Returns:
        (base's median / other's median, lower bound, upper bound). One sample a side has no interval: both
        bounds are the ratio.
    """
    from scipy.stats import bootstrap  # a second of imports, after what is timed

    def ratio_of_medians(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], axis: int = -1) -> object:
        return np.median(a, axis=axis) / np.median(b, axis=axis)

    seconds = np.array(base.trusted), np.array(other.trusted)
    ratio = float(np.median(seconds[0]) / np.median(seconds[1]))
    if min(map(len, seconds)) < 2:
        return ratio, ratio, ratio
    interval = bootstrap(
        seconds,
        ratio_of_medians,
        n_resamples=RESAMPLES,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return ratio, float(interval.low), float(interval.high)
