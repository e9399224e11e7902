"""The roofline of a pass: no faster than its bytes at full bandwidth, nor than its FLOPs at full rate.

Williams, Waterman, Patterson 2009, Roofline: an insightful visual performance model. Bytes are those of
weights and cache alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.evals import gpus
from pipeline.evals.gpus import Gpu
from pipeline.models import costs
from pipeline.models.compensation import NO_MAPS, MapSizes
from pipeline.models.config import Config
from pipeline.models.costs import Workload
from pipeline.types import SkipSet

Bound = Literal["bytes", "FLOPs"]
PROCESSOR_BALANCE = 20.0
"""FLOPs that a processor computes in the time of a byte: of 10 to 30, for cores of today's servers."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a pass moves and computes.

    Attributes:
        bytes: of weights and cache.
        flops: of matrix products and scores.
    """

    bytes: int
    flops: int

    def seconds(self, gpu: Gpu) -> float:
        """What no kernel on this GPU can be faster than."""
        return max(self.bytes / gpu.bandwidth, self.flops / gpu.flops)

    def bound(self, gpu: Gpu) -> Bound:
        """What takes longer there."""
        return "bytes" if self.bytes / gpu.bandwidth >= self.flops / gpu.flops else "FLOPs"


def traffic(
    config: Config, skip: SkipSet, precision: str, work: Workload, maps: MapSizes = NO_MAPS
) -> Traffic:
    """What a variant's pass moves and computes; a prefill gives the logits of its last position.

    Args:
        config: of the model.
        skip: what is left out.
        precision: of weights and cache.
        work: what is computed.
        maps: of the variant's compensation.
    """
    new, past = (1, work.length) if work.decode else (work.length, 0)
    return Traffic(
        costs.streamed_bytes(config, skip, precision, work, maps),
        work.batch * costs.flops(config, skip, new, past, maps=maps),
    )


def bytes_bind(one: Traffic, device: str) -> bool:
    """Whether a pass takes its bytes' time, and not its FLOPs', where it runs.

    Args:
        one: the pass.
        device: the GPU, as CUDA's driver names it. What is not known (`gpus`) counts as a processor, of which
            no datasheet is at hand (`PROCESSOR_BALANCE`).
    """
    gpu = gpus.of_device(device)
    if gpu is None:
        return one.flops < PROCESSOR_BALANCE * one.bytes
    return one.bound(gpu) == "bytes"
