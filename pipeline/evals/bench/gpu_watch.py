"""What a GPU does beside a measurement: its clocks, its power, why it is slowed, and who else uses it.

nvidia-smi comes with every driver. PyTorch gives the same numbers only with nvidia-ml-py beside it, one more
package. Where there is no nvidia-smi, nothing is told.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

from pipeline.runtime import tensorrt_library
from pipeline.store.records import GpuLoad, GpuState

BUSY = 10.0
"""% of a GPU at rest that others may use."""
REST = 1.0
"""Seconds after which the driver's figure of how busy a GPU is holds none of our own work."""
_PERIOD_MS = 500
_FIELDS = {
    "sm_mhz": "clocks.sm",
    "sm_most_mhz": "clocks.max.sm",
    "memory_mhz": "clocks.mem",
    "watts": "power.draw",
    "watts_limit": "enforced.power.limit",
    "celsius": "temperature.gpu",
    "busy": "utilization.gpu",
    "used_mb": "memory.used",
}
_REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
"""Two names of one field: drivers before 535 know the second alone."""
_BITS = {
    0x2: "the clocks that were set",
    0x4: "its power limit",
    0x8: "the hardware (heat or power)",
    0x10: "other GPUs that it keeps pace with",
    0x20: "heat",
    0x40: "heat, by the hardware",
    0x80: "the power supply",
}
"""nvml.h, nvmlClocksEventReason…; 1 is 'nothing runs'."""
_SLOWING = (0x8, 0x20, 0x40, 0x80)
"""Not a card's steady state: its power limit, and clocks that somebody set, are."""


def state() -> GpuState | None:
    """The GPU that CUDA computes on, now; None where nothing tells."""
    for reasons in _REASONS:
        rows = _rows(_query(reasons))
        if rows:
            return _parsed(rows[0])
    return None


def others() -> tuple[str, ...]:
    """Processes that compute on the GPU and are not this one, its parents or its children: 'number name'.

    Inside a container a driver may list numbers that mean nothing there; those are passed over, and only how
    busy the GPU is tells of them.
    """
    command = ["nvidia-smi", *_card(), "--query-compute-apps=pid,process_name", "--format=csv,noheader"]
    own = psutil.Process()
    family = {one.pid for one in (own, *own.parents(), *own.children(recursive=True))}
    listed = [[cell.strip() for cell in row.split(",", 1)] for row in _rows(command)]
    foreign = [row for row in listed if row[0].isdigit() and int(row[0]) not in family]
    return tuple(" ".join(row) for row in foreign if psutil.pid_exists(int(row[0])))


class Watch:
    """Readings of a GPU, twice a second, by an nvidia-smi that runs beside the measurement.

    Args:
        output: what it writes.
    """

    def __init__(self, output: Path) -> None:
        self._output, self._first = output, 0

    def begin(self) -> None:
        """Readings up to now are of the warm-up."""
        self._first = len(self._all())

    def readings(self) -> list[GpuState]:
        """Since `begin`; the last one before it where it has none."""
        everything = self._all()
        return everything[self._first :] or everything[-1:]

    def _all(self) -> list[GpuState]:
        lines = self._output.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        return [_parsed(line) for line in lines if line.endswith("\n") and line.count(",") == len(_FIELDS)]


@contextmanager
def watching() -> Iterator[Watch]:
    """Watches the GPU; without nvidia-smi there are no readings."""
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "readings.csv").open("wb") as output:
        reasons, child = next((one for one in _REASONS if _rows(_query(one))), None), None
        if reasons:
            # Into a file a program may write only when its buffer is full; stdbuf makes it write each line.
            by_line = ["stdbuf", "-oL"] if shutil.which("stdbuf") else []
            command = [*by_line, *_query(reasons), f"--loop-ms={_PERIOD_MS}"]
            child = subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL)
        try:
            yield Watch(Path(output.name))
        finally:
            if child is not None:
                child.terminate()
                child.wait()


@dataclass(slots=True)
class Observation:
    """A GPU around and during the measurement of one length.

    Attributes:
        watch: while it runs; None where nothing tells.
        load: afterwards, all of it; None likewise.
    """

    watch: Watch | None = None
    load: GpuLoad | None = None

    def begin(self) -> None:
        """The warm-up is over."""
        if self.watch:
            self.watch.begin()


@contextmanager
def observing(is_on_gpu: bool, sleep: Callable[[float], object]) -> Iterator[Observation]:
    """Looks at the GPU before, while and after something is measured.

    Args:
        is_on_gpu: nothing is looked at for what runs on the CPU.
        sleep: waits for so many seconds.
    """
    seen = Observation()
    before, first = _at_rest(sleep) if is_on_gpu else (None, ())
    if before is None:
        yield seen
        return
    with watching() as seen.watch:
        yield seen
        readings = seen.watch.readings()
    after, last = _at_rest(sleep)
    seen.load = load(before, after, readings, tuple(dict.fromkeys((*first, *last))))


def _at_rest(sleep: Callable[[float], object]) -> tuple[GpuState | None, tuple[str, ...]]:
    """The GPU, and who else uses it, when our own work is out of the driver's figures."""
    sleep(REST)
    return state(), others()


def load(
    before: GpuState | None, after: GpuState | None, readings: Sequence[GpuState], processes: Sequence[str]
) -> GpuLoad | None:
    """What was seen around and during a measurement; None where nothing tells.

    Args:
        before: the GPU at rest.
        after: the same, afterwards.
        readings: while it ran.
        processes: of others.
    """
    if before is None or after is None:
        return None
    seen = sorted({reason for one in readings for reason in one.reasons})
    return GpuLoad(
        before=before,
        after=after,
        sm_mhz=_spread([one.sm_mhz for one in readings]),
        watts=_spread([one.watts for one in readings]),
        celsius=_spread([one.celsius for one in readings]),
        readings=len(readings),
        reasons={reason: sum(reason in one.reasons for one in readings) / len(readings) for reason in seen},
        processes=tuple(processes),
        problems=tuple(_problems(before, after, seen, processes)),
    )


def _problems(
    before: GpuState, after: GpuState, reasons: Sequence[str], processes: Sequence[str]
) -> Iterator[str]:
    slowing = [_BITS[bit] for bit in _SLOWING if _BITS[bit] in reasons]
    if slowing:
        yield f"it was slowed by {' and '.join(slowing)}"
    if processes:
        yield f"other processes use it: {', '.join(processes)}"
    busy = max(before.busy or 0.0, after.busy or 0.0)
    if busy > BUSY:
        yield f"it was {busy:.0f} % busy when nothing was timed"


def _spread(values: Sequence[float | None]) -> tuple[float, float, float] | None:
    known = [value for value in values if value is not None]
    return (min(known), median(known), max(known)) if known else None


def _card() -> list[str]:
    """CUDA's device 0, which need not be nvidia-smi's."""
    bus = tensorrt_library.gpu_bus()
    return [f"--id={bus}"] if bus else []


def _query(reasons: str) -> list[str]:
    fields = ",".join([*_FIELDS.values(), reasons])
    return ["nvidia-smi", *_card(), f"--query-gpu={fields}", "--format=csv,noheader,nounits"]


def _rows(command: list[str]) -> list[str]:
    """Lines that a command prints; none where it fails, hangs or is missing."""
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [] if done.returncode else [line for line in done.stdout.splitlines() if line.strip()]


def _parsed(row: str) -> GpuState:
    *numbers, reasons = [cell.strip() for cell in row.split(",")]
    try:
        mask = int(reasons, 16)
    except ValueError:  # '[N/A]'
        mask = 0
    fields = dict(zip(_FIELDS, map(_number, numbers), strict=True))
    seen = tuple(words for bit, words in _BITS.items() if mask & bit)
    return GpuState.model_validate({**fields, "reasons": seen})


def _number(text: str) -> float | None:
    """'1980' → 1980.0; None of '[N/A]', '[Not Supported]' and the like."""
    try:
        return float(text)
    except ValueError:
        return None
