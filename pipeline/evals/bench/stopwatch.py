"""Interleaved timing on a machine that others use too: samples that were disturbed are recognised and taken again.

A sample is disturbed when other work (or the hypervisor) held the processors meanwhile: the time that they were not idle,
less this process's own CPU time, is beyond `allowance`. Idle time is read, not busy time: the kernel measures the former
and samples the latter once a tick (60 runs of 30 ms on a loaded machine: 8 ms between the 5th and 90th percentile
against 24 ms). Only Linux tells; elsewhere nothing is recognised.
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
from typing import Protocol

import numpy as np

Run = Callable[[int], object]
"""Runs one sequence, given its number; its feeds are made before."""

TICK = 0.012
"""Seconds: /proc/stat counts in hundredths, so that one reading is off by up to 10 ms."""
SHARE = 0.06
"""Share of the processors' time that other work may have had in a clean sample."""
REPEATS = 3
"""How often one disturbed sample is taken again at most."""
PAUSE = 0.02
"""Seconds before a repeat, times the repeats so far: what disturbed may pass."""
_STAT = Path("/proc/stat")


class Clock(Protocol):
    """Where the seconds come from; tests bring their own."""

    processors: int

    def wall(self) -> float: ...

    def own(self) -> float:
        """CPU seconds of this process, all threads."""
        ...

    def idle(self) -> float | None:
        """Seconds that the processors of this process were idle, summed; None where the system does not tell."""
        ...

    def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's clocks, over the processors that this process may use."""

    def __init__(self, stat: Path = _STAT) -> None:
        usable = (
            os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
        )
        self.processors = len(usable)
        self._stat = stat
        # the sum over all processors is rounded once, the lines of single processors once each
        self._lines = {"cpu"} if self.processors == os.cpu_count() else {f"cpu{n}" for n in usable}

    def wall(self) -> float:
        return time.perf_counter()

    def own(self) -> float:
        return time.process_time()

    def idle(self) -> float | None:
        if not self._stat.is_file():
            return None
        rows = [line.split() for line in self._stat.read_text().splitlines() if line.startswith("cpu")]
        return sum(int(row[4]) + int(row[5]) for row in rows if row[0] in self._lines) / os.sysconf(
            "SC_CLK_TCK"
        )

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@dataclass(slots=True)
class Samples:
    """The samples of one contestant.

    Attributes:
        seconds: one sample a sequence: the clean one, else of all its tries the one that other work disturbed least.
        clean: whether that one is clean, in the same order.
        disturbed: how many samples were found disturbed, the repeated ones too.
    """

    seconds: list[float] = field(default_factory=list)
    clean: list[bool] = field(default_factory=list)
    disturbed: int = 0

    @property
    def kept_disturbed(self) -> int:
        """Sequences all of whose tries were disturbed."""
        return self.clean.count(False)

    @property
    def enough(self) -> bool:
        """Whether the clean samples can stand for the run: a quarter of the sequences, and five at least (all of fewer)."""
        return self.clean.count(True) >= min(len(self.clean), max(5, -(-len(self.clean) // 4)))

    @property
    def trusted(self) -> list[float]:
        """What quantiles are taken from: the clean samples where there are enough, else all."""
        return (
            [s for s, clean in zip(self.seconds, self.clean, strict=True) if clean]
            if self.enough
            else self.seconds
        )


def allowance(seconds: float, processors: int) -> float:
    """CPU seconds that other work may have had in a clean sample of so many seconds."""
    return max(TICK, SHARE * processors * seconds)


def busy_seconds(clock: Clock | None = None) -> float | None:
    """CPU seconds that the processors were not idle since an arbitrary start; None where the system does not tell."""
    clock = clock or SystemClock()
    idle = clock.idle()
    return None if idle is None else clock.processors * clock.wall() - idle


def interleave(
    runs: Sequence[Run],
    sequences: int,
    tick: Callable[[], object] | None = None,
    *,
    settle: float = 0.0,
    seed: int = 0,
    clock: Clock | None = None,
) -> list[Samples]:
    """Times every contestant on every sequence, sequence by sequence, in an order that is shuffled each round.

    A disturbed sample is taken again at the end of its round, REPEATS times at most, and over the run not more often than
    there are samples: a machine that is never quiet ends too. No garbage is collected meanwhile.

    Args:
        runs: the contestants, warmed up.
        tick: called after each round, outside of what is timed.
        settle: seconds before each sample, for threads of the one before that spin on (`disturbed` sees other processes only).

    Returns:
        The contestants' samples, in the order of `runs`.
    """
    clock = clock or SystemClock()
    rng = random.Random(seed)
    samples = [Samples() for _ in runs]
    spare = sequences * len(runs)
    with _no_garbage_collection():
        for k in range(sequences):
            tried: list[list[tuple[float, float]]] = [[] for _ in runs]
            queue = deque(rng.sample(range(len(runs)), len(runs)))
            while queue:
                n = queue.popleft()
                clock.sleep(settle + PAUSE * len(tried[n]))
                tried[n].append(_sample(runs[n], k, clock))
                if tried[n][-1][0] > 0 and len(tried[n]) <= REPEATS and spare > 0:
                    spare -= 1
                    queue.append(n)
            for mine, tries in zip(samples, tried, strict=True):
                excess, seconds = min(tries)
                mine.seconds.append(seconds)
                mine.clean.append(excess <= 0)
                mine.disturbed += sum(e > 0 for e, _ in tries)
            if tick:
                tick()
    return samples


def _sample(run: Run, k: int, clock: Clock) -> tuple[float, float]:
    """(the share of the processors that other work had beyond what is allowed, 0 for a clean sample; wall seconds)."""
    idle, own, start = clock.idle(), clock.own(), clock.wall()
    run(k)
    seconds, own, idle_after = clock.wall() - start, clock.own() - own, clock.idle()
    if idle is None or idle_after is None or seconds <= 0:
        return 0.0, seconds
    capacity = clock.processors * seconds
    others = capacity - (idle_after - idle) - own
    return max(0.0, others - allowance(seconds, clock.processors)) / capacity, seconds


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
    """(base's median over the other's, and the bounds of its 95 % interval).

    The interval is the bootstrap's: both sides' samples are drawn again 400 times. Few samples make it wide.
    """
    rng = np.random.default_rng(seed)
    mine, theirs = (np.array(samples.trusted) for samples in (base, other))
    drawn = [np.median(rng.choice(s, (400, len(s))), axis=1) for s in (mine, theirs)]
    low, high = np.quantile(drawn[0] / drawn[1], [0.025, 0.975])
    return float(np.median(mine) / np.median(theirs)), float(low), float(high)
