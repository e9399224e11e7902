"""Times that commands measure on the way to something else: of a kind of sublayer, of what was chosen.

Stages never import each other; the commands chain them, here and in `prerequisites`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import store
from pipeline.store import records
from pipeline.store.records import BenchRecord, Latency, SublayerTimes, TimesRecord
from pipeline.types import Provider, SkipSet

if TYPE_CHECKING:
    from pipeline.evals.bench.table import BenchReport

PROBES = 20
"""Sequences on which a time is measured for a choice."""


def sublayer_times(base: Path, length: int, provider: Provider = "cpu") -> SublayerTimes:
    """What a sublayer of each kind takes inside the graph on this machine; kept in calib/.

    It is measured by leaving out the last third of the layers' attention, and of their MLPs.

    Args:
        base: a base graph.
        length: tokens of a sequence.
        provider: of ONNX Runtime.
    """
    from pipeline.evals import machine

    sidecar = store.graph_sidecar(base)
    folder = store.Project.of(base).calib(sidecar.model)
    path = store.measured_on(folder / f"times-{sidecar.precision_name}-{length}.json", provider)
    device = machine.device(base, provider)
    known = records.read_if_valid(TimesRecord, path)
    if known is not None and known.matches({"base": sidecar.sha256, "device": device, "length": length}):
        return known.seconds
    times = _measured_times(base, sidecar.num_layers, length, provider)
    record = TimesRecord(base=sidecar.sha256, device=device, length=length, sequences=PROBES, seconds=times)
    store.write_json(path, record.plain())
    return times


def _measured_times(base: Path, num_layers: int, length: int, provider: Provider) -> SublayerTimes:
    from pipeline.graphs import variants as surgery

    third = range(num_layers - max(1, num_layers // 3), num_layers)
    attn, mlp = (surgery.cut(base, SkipSet.of(kind, third)) for kind in ("attn", "mlp"))
    report = _quick_bench([attn, mlp], length, True, provider)
    whole = next(row.p50 for row in report.rows if row.artefact == str(base)) / 1e3
    seconds = {row.artefact: max(0.0, whole * row.improvement / 100 / len(third)) for row in report.rows}
    return SublayerTimes(whole=whole, attn=seconds[str(attn)], mlp=seconds[str(mlp)])


def milliseconds(paths: list[Path], length: int, provider: Provider = "cpu") -> dict[Path, float]:
    """Median of a prefill, of graphs of one model and of their base, in one short interleaved run.

    Args:
        paths: graphs; they need no check, and no result is left behind.
        length: tokens of a sequence.
        provider: of ONNX Runtime.
    """
    rows = _quick_bench(paths, length, True, provider).rows
    return {Path(row.artefact): row.p50 for row in rows}


def latencies(paths: list[Path], length: int, provider: Provider = "cpu") -> dict[Path, Latency]:
    """A prefill of graphs of one model and of their base: from results of one run, or of one that runs now.

    Args:
        paths: graphs that have passed their checks; their results are kept.
        length: tokens of a sequence.
        provider: of ONNX Runtime.

    Returns:
        The bases first.
    """
    from pipeline.evals.bench import contestants

    everyone = contestants.with_bases(paths)
    names = {contestants.name_of(path) for path in everyone}
    kept = {path: _kept_latency(path, names, length, provider) for path in everyone}
    known = {path: row for path, row in kept.items() if row is not None}
    if len(known) == len(everyone):
        return known
    rows = _quick_bench(paths, length, False, provider).rows
    measured = {Path(row.artefact): row for row in rows}
    return {path: measured[path] for path in everyone if path in measured}


def speedup(path: Path, length: int, provider: Provider = "cpu") -> float:
    """Of a prefill of one graph over its base; arguments as `latencies`.

    The graph's own result says it, of the base in its run, even where the base has been timed again since.
    """
    from pipeline.evals.bench import contestants

    names = {contestants.name_of(one) for one in contestants.with_bases([path])}
    kept = _kept_latency(path, names, length, provider)
    return over_base(kept or latencies([path], length, provider)[path])


def over_base(latency: Latency) -> float:
    """The speed-up over the base graph, by the medians."""
    return 1 / (1 - latency.improvement / 100)


def _kept_latency(path: Path, beside: set[str], length: int, provider: Provider) -> Latency | None:
    """What a bench of a graph left, if it ran here, on what is there now, and interleaved with these.

    Args:
        path: of the graph.
        beside: names of contestants.
        length: tokens of a sequence.
        provider: of ONNX Runtime.
    """
    from pipeline.evals import machine
    from pipeline.evals.bench.stopwatch import SystemClock

    record = records.read_if_valid(BenchRecord, store.result_of(path, "bench", provider))
    if record is None or record.sha256 != store.sha256(path):
        return None
    here = {
        "decode": False,
        "batch": 1,
        "checked": True,
        "device": machine.device(path, provider),
        "threads": SystemClock().processors,
    }
    how = record.conditions
    is_same = how.matches(here) and record.matches({"weights": store.sidecar(path).plain()["weights"]})
    if not is_same or how.sequences < PROBES or not beside <= set(how.how):
        return None
    rows = (row for row in record.rows if row.kind == "artefact" and row.length == length)
    row = next(rows, None)
    return None if row is None else row.replaced(artefact=str(path))


def _quick_bench(paths: list[Path], length: int, is_probe: bool, provider: Provider) -> BenchReport:
    """A short measurement; that of a probe needs no check and leaves no result behind."""
    from pipeline.evals.bench import bench as stage

    settings = stage.BenchSettings(
        sequences=PROBES, lengths=(length,), unchecked=is_probe, write=not is_probe, provider=provider
    )
    return stage.bench(paths, settings)
