"""A clock under the test's control, and the graphs that measurements are tried on."""

from __future__ import annotations

from pathlib import Path


class FakeClock:
    """Time passes only where a run says so.

    Other work has one of two processors for `others` seconds meanwhile.
    """

    processors = 2

    def __init__(self, has_idle: bool = True) -> None:
        self.now = self.cpu = self.resting = self.slept = 0.0
        self.has_idle = has_idle

    def wall(self) -> float:
        return self.now

    def own(self) -> float:
        return self.cpu

    def idle(self) -> float | None:
        return self.resting if self.has_idle else None

    def sleep(self, seconds: float) -> None:
        self.slept += seconds

    def spend(self, seconds: float, others: float = 0.0) -> None:
        self.now += seconds
        self.cpu += seconds
        self.resting += max(0.0, seconds - others)


def graph(model: Path, variant: str) -> Path:
    return model / f"{variant}.fp32.onnx"
