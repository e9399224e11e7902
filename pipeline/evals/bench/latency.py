"""A contestant's samples as a row of the result: its quantiles, its speed-up, and the ceiling beside it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline import store
from pipeline.evals import machine, roofline
from pipeline.evals.bench import stopwatch
from pipeline.evals.bench.contestants import Contestant
from pipeline.evals.bench.memory import Resident
from pipeline.models import compensation, costs
from pipeline.models.config import read_config
from pipeline.models.costs import Workload
from pipeline.store.records import Latency, OverPlain
from pipeline.types import BASE, SkipSet, UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Costs:
    """What config.json and the skip set say of a variant; None where the config does not say.

    Attributes:
        ceiling: % of the time that the removed FLOPs (prefill) or bytes (decode) allow to save.
        byte_ceiling: % that the removed bytes allow; None but for a prefill that bytes bind.
        weight_mb: MB of its weights.
        cache_bytes_per_token: bytes of one token's keys and values.
    """

    ceiling: float | None = None
    byte_ceiling: float | None = None
    weight_mb: float | None = None
    cache_bytes_per_token: int | None = None

    @property
    def ceilings(self) -> list[float]:
        """Those that there are; that of what binds the time first."""
        return [one for one in (self.byte_ceiling, self.ceiling) if one is not None]


def latency(
    contestant: Contestant,
    samples: stopwatch.Samples,
    base: stopwatch.Samples,
    work: Workload,
    resident: Resident | None,
    base_skip: SkipSet = BASE,
) -> Latency:
    """One row.

    Args:
        contestant: what was timed.
        samples: its own.
        base: the base graph's, of the same run.
        work: what was timed.
        resident: its memory; None where it was not measured.
        base_skip: what that graph leaves out, where there is no whole one.
    """
    saved, low, high = map(saved_percent, stopwatch.speedup(base, samples))
    cost = _costs(contestant, work, base_skip)
    is_cut = contestant.kind == "artefact" and contestant.variant.skip != base_skip
    ceilings = cost.ceilings if is_cut else []  # PyTorch and optimum are other programs
    return Latency(
        artefact=str(contestant.path),
        name=contestant.name,
        kind=contestant.kind,
        length=work.length,
        total=float(np.mean(samples.trusted)) * len(samples.seconds),
        **_percentiles(samples),
        improvement=saved,
        interval=(low, high),
        ceiling=cost.ceiling,
        byte_ceiling=cost.byte_ceiling,
        share=saved / ceilings[0] if ceilings and ceilings[0] else None,
        above_ceiling=bool(ceilings) and low > max(ceilings),
        disturbed=samples.disturbed,
        clean=samples.clean.count(True),
        enough_clean=samples.enough,
        **_memory(cost, resident) | _on_device(contestant, resident, work.length),
    )


def over_plain(
    contestant: Contestant,
    samples: stopwatch.Samples,
    plain: tuple[str, stopwatch.Samples],
    work: Workload,
    base_skip: SkipSet,
) -> OverPlain:
    """What a contestant with quantised weights saves of the base with the checkpoint's own.

    Args:
        contestant: what was timed.
        samples: its own.
        plain: name and samples of that base, of the same run.
        work: what was timed.
        base_skip: what that base leaves out.
    """
    saved, low, high = map(saved_percent, stopwatch.speedup(plain[1], samples))
    path, variant, ceiling = contestant.path, contestant.variant, None
    if work.decode and contestant.kind == "artefact":
        config, maps = read_config(store.checkpoint_folder(path)), compensation.sizes(store.overlays(path))
        before = costs.streamed_bytes(config, base_skip, variant.precision, work)
        after = costs.streamed_bytes(config, variant.skip, variant.precision_name, work, maps)
        ceiling = saved_percent(before / after)
    return OverPlain(base=plain[0], improvement=saved, interval=(low, high), ceiling=ceiling)


def _percentiles(samples: stopwatch.Samples) -> dict[str, Any]:
    """Of a sequence's time, in ms."""
    return {f"p{p}": float(np.percentile(samples.trusted, p)) * 1e3 for p in (50, 90, 99)}


def _memory(cost: Costs, resident: Resident | None) -> dict[str, Any]:
    """The fields of a row that tell of memory."""
    return {
        "peak_mb": resident.peak if resident else None,
        "before_mb": resident.before if resident else None,
        "weight_mb": cost.weight_mb,
        "cache_bytes_per_token": cost.cache_bytes_per_token,
    }


def _on_device(contestant: Contestant, resident: Resident | None, length: int) -> dict[str, Any]:
    """The fields of a row that tell how a GPU ran it."""
    if contestant.memory:
        return {"device_mb": contestant.memory.mb, "attention": contestant.attention}
    if resident is None:
        return {"attention": contestant.attention}
    return {
        "device_mb": resident.device,
        "attention": resident.attention.get(length, contestant.attention),
        "on_host": resident.on_host,
    }


def saved_percent(speedup: float) -> float:
    """A speed-up as % of the time saved: 2 → 50."""
    return 100 * (1 - 1 / speedup)


def _costs(contestant: Contestant, work: Workload, base_skip: SkipSet) -> Costs:
    path, variant = contestant.path, contestant.variant
    config, skip, precision = read_config(store.checkpoint_folder(path)), variant.skip, variant.precision_name
    maps = compensation.sizes(store.overlays(path))

    def saved(ceiling: Callable[..., float]) -> float:
        part = ceiling(config, skip, precision, work, maps)
        return saved_percent(part / ceiling(config, base_skip, precision, work))

    try:
        base = roofline.traffic(config, base_skip, precision, work)
        has_both = not work.decode and roofline.bytes_bind(base, machine.device(path, contestant.provider))
        return Costs(
            saved(costs.ceiling),
            saved(costs.byte_ceiling) if has_both else None,
            costs.weight_bytes(config, skip, precision, maps) / 1e6,
            costs.cache_bytes(config, skip, precision),
        )
    except UserError as error:
        log.warning("%s", error)
        return Costs()
