"""Stage: the papers' measurement. The time to predict 1 token for each of 1000 sequences (Tyukin et al. 2024, §3.3).

Sequences are real text cut to exact length, batch 1, K = 1. Base and variants (and, where asked, PyTorch and optimum's
graph of the same variant) are interleaved sequence by sequence in one process. Every contestant returns what the next
step would need, the logits and the cache; feeds are made before the clock starts.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from pipeline import store
from pipeline.evals import machine
from pipeline.evals.bench import contestants, stopwatch
from pipeline.evals.bench.contestants import Contestant
from pipeline.evals.bench.latency import Latency, Report, short, table
from pipeline.models import costs, texts
from pipeline.types import UserError, Variant

__all__ = ["Report", "bench", "short", "table"]

log = logging.getLogger(__name__)
_PACKAGES = (
    "skip-pipeline",
    "onnxruntime-gpu",
    "onnxruntime",
    "torch",
    "transformers",
    "optimum-onnx",
    "numpy",
)
Memory = dict[Path, tuple[float, float] | None]


def bench(
    paths: list[Path],
    *,
    sequences: int = 1000,
    lengths: tuple[int, ...] = (50, 100),
    batch: int = 1,
    decode: bool = False,
    compare: tuple[str, ...] = (),
    optimum_graphs: dict[Path, Path] | None = None,
    threads: int = 0,
    unchecked: bool = False,
    write: bool = True,
    clock: stopwatch.Clock | None = None,
) -> Report:
    """Times the artefacts and their base, and writes evals/results/<model>/<artefact>.bench.json for each.

    Args:
        decode: time one further token on a cache of each length instead of the prefill.
        compare: 'torch' and 'optimum' add the same variants under PyTorch eager and optimum's graph.
        optimum_graphs: artefact → optimum's graph of the same variant.
        threads: of every contestant; 0 is one a core.
        write: False leaves no result behind, for a measurement that serves another one.
        clock: the machine's by default; tests bring their own.

    Raises:
        UserError: an artefact has not passed its check, does not run here, or all of them do not fit into memory at once.
    """
    if sequences < 1 or batch < 1 or threads < 0 or not lengths or min(lengths) < 1:
        raise UserError("--sequences, --batch and --lengths must be at least 1, and --threads not negative")
    if strange := set(compare) - {"torch", "optimum"}:
        raise UserError(f"--compare takes torch and optimum, not {', '.join(sorted(strange))}")
    paths = with_bases(paths)
    for path in () if unchecked else paths:
        if not store.check_passed(path):
            raise UserError(f"{path} has passed no check; run `pipeline check {path}`, or pass --unchecked")
    clock = clock or stopwatch.SystemClock()
    threads = threads or clock.processors
    memory: Memory = {path: contestants.peak_memory(path, batch, max(lengths), threads) for path in paths}
    _must_fit(memory)
    taking_part = _contestants(paths, compare, optimum_graphs or {}, threads, decode)
    conditions = _conditions(sequences, batch, decode, threads, unchecked, clock, taking_part)
    folder, rows = store.checkpoint_folder(paths[0]), list[Latency]()
    with Progress(console=Console(stderr=True), transient=True, auto_refresh=False) as bar:
        for length in lengths:
            tokens, source = texts.sequences(folder, length + decode, sequences * batch)
            conditions["tokens"] = source
            runs = [c.start(tokens.reshape(sequences, batch, -1)) for c in taking_part]
            conditions["agreement"][str(length)] = _warm_up(taking_part, runs)
            settle = contestants.SETTLE if "torch" in compare else 0.0
            tick = _ticker(bar, f"{length} tokens", sequences)
            samples = stopwatch.interleave(runs, sequences, tick, settle=settle, clock=clock)
            rows += _rows(taking_part, samples, length, decode, batch, memory)
    results = [str(_write(c, rows, conditions)) for c in taking_part if c.kind == "artefact" and write]
    return Report(rows, conditions, results)


# ---- who takes part -------------------------------------------------------------------------------------------------


def with_bases(paths: list[Path]) -> list[Path]:
    """The artefacts of one model, each with its base before it.

    Raises:
        UserError: a base is missing, a graph is a merged one, or the artefacts are of several models.
    """
    found = [path for given in paths for path in (_base_of(given), given)]
    models = {store.read_sidecar(path)["model"] for path in found}
    if len(models) != 1:
        raise UserError(f"one model at a time: these are of {', '.join(sorted(models)) or 'none'}")
    return list(dict.fromkeys(found))


def _base_of(path: Path) -> Path:
    record = store.read_sidecar(path)
    if record.get("artefact") == "merged":
        raise UserError(f"{path} is a merged graph; measure the variants that it was merged from")
    precision = store.variant_of(record).precision
    base = (
        path.with_name(f"base.{precision}.onnx")
        if path.suffix == ".onnx"
        else path.parent.parent / "base" / path.name
    )
    if not base.is_file():
        command = "export" if path.suffix == ".onnx" else "build-engine"
        raise UserError(
            f"{base} is missing: a variant is measured beside its base; make it with `pipeline {command}`"
        )
    return base


def _contestants(
    paths: list[Path], compare: tuple[str, ...], twins: dict[Path, Path], threads: int, decode: bool
) -> list[Contestant]:
    found: list[Contestant] = []
    for path in paths:
        variant, name = _named(path)
        start = contestants.of_artefact(path, threads, decode)
        found.append(
            Contestant(name, path, variant, "artefact", start, "logits and cache; feeds as numpy arrays")
        )
    for path in paths if "torch" in compare else ():
        variant, name = _named(path)
        healed = store.healed_weights(path)
        start = contestants.of_torch(
            store.checkpoint_folder(path), variant.skip, variant.precision, threads, decode, healed
        )
        how = "transformers, attn_implementation='eager', use_cache=True, logits_to_keep=1"
        found.append(Contestant(f"{name} (torch)", path, variant, "torch", start, how))
    for path, twin in twins.items() if "optimum" in compare else ():
        variant, name = _named(path)
        start = contestants.of_artefact(twin, threads, decode)
        how = f"{twin}: logits of all tokens and cache; feeds as numpy arrays"
        found.append(Contestant(f"{name} (optimum)", path, variant, "optimum", start, how))
    return found


def _named(path: Path) -> tuple[Variant, str]:
    variant = store.variant_of(store.read_sidecar(path))
    return variant, variant.stem if path.suffix == ".onnx" else f"{variant.name}/{path.stem}"


def _must_fit(memory: Memory) -> None:
    """All contestants are loaded at once: a machine that swaps measures its disk."""
    needed, free = sum(m[0] - m[1] for m in memory.values() if m), contestants.free_memory()
    if free is not None and needed > free:
        raise UserError(
            f"{len(memory)} artefacts at once need {needed:.0f} MB, and {free:.0f} MB are free; name fewer of them"
        )


# ---- the run --------------------------------------------------------------------------------------------------------


def _warm_up(taking_part: list[Contestant], runs: list[Callable[[int], Any]]) -> dict[str, float]:
    """Two runs each, so that kernels are chosen and memory is there → {PyTorch's or optimum's: largest logit difference}.

    Raises:
        UserError: a comparison does not compute what its artefact computes; its time would say nothing.
    """
    logits: dict[str, Any] = {}
    for contestant, run in zip(taking_part, runs, strict=True):
        run(0)
        logits[contestant.name] = np.array(run(0), np.float64)[:, -1]
    apart = {}
    for c in (c for c in taking_part if c.kind != "artefact"):
        own = logits[_named(c.path)[1]]
        apart[c.name] = float(np.abs(own - logits[c.name]).max())
        limit = (0.1 if c.variant.precision == "fp16" else 0.01) * max(1.0, float(np.abs(own).max()))
        if not apart[c.name] <= limit:
            raise UserError(
                f"{c.name} and {c.path} give other logits ({apart[c.name]:.2g} apart); run `pipeline check --force`"
            )
    return apart


def _ticker(bar: Progress, words: str, total: int) -> Callable[[], None]:
    """Advances the bar; it is drawn between rounds, twice a second, and not before two seconds of work."""
    task, drawn = bar.add_task(words, total=total), time.monotonic() + 1.5

    def tick() -> None:
        nonlocal drawn
        bar.advance(task)
        if time.monotonic() - drawn > 0.5:
            bar.refresh()
            drawn = time.monotonic()

    return tick


# ---- what comes out -------------------------------------------------------------------------------------------------


def _rows(
    taking_part: list[Contestant],
    samples: list[stopwatch.Samples],
    length: int,
    decode: bool,
    batch: int,
    memory: Memory,
) -> list[Latency]:
    by_name = {c.name: s for c, s in zip(taking_part, samples, strict=True)}
    return [
        _row(c, by_name[c.name], by_name[_named(_base_of(c.path))[1]], length, decode, batch, memory)
        for c in taking_part
    ]


def _row(
    c: Contestant,
    mine: stopwatch.Samples,
    base: stopwatch.Samples,
    length: int,
    decode: bool,
    batch: int,
    memory: Memory,
) -> Latency:
    ratio, low, high = stopwatch.speedup(base, mine)
    ceiling, weights, cache = _costs(c, length, decode, batch)
    counts = c.kind == "artefact" and bool(c.variant.skip) and ceiling is not None
    seconds = np.array(mine.trusted)
    quantiles = [float(q) * 1e3 for q in np.quantile(seconds, [0.5, 0.9, 0.99])]
    peak = memory.get(c.path) if c.kind == "artefact" else None
    return Latency(
        artefact=str(c.path), name=c.name, kind=c.kind, length=length, total=float(seconds.mean()) * len(mine.seconds),
        p50=quantiles[0], p90=quantiles[1], p99=quantiles[2],
        improvement=_saved(ratio), interval=(_saved(low), _saved(high)),
        ceiling=None if ceiling is None else _saved(ceiling),
        share=_saved(ratio) / _saved(ceiling) if counts and ceiling else None,
        above_ceiling=counts and ceiling is not None and low > ceiling,
        disturbed=mine.disturbed, clean=mine.clean.count(True), enough_clean=mine.enough,
        peak_mb=peak[0] if peak else None, before_mb=peak[1] if peak else None,
        weight_mb=weights, cache_bytes_per_token=cache,
    )  # fmt: skip


def _saved(speedup: float) -> float:
    """A speed-up as % of the time saved: 2 → 50."""
    return 100 * (1 - 1 / speedup)


def _costs(
    c: Contestant, length: int, decode: bool, batch: int
) -> tuple[float | None, float | None, int | None]:
    """(ceiling as a speed-up, MB of weights, bytes of cache a token); None where the config does not tell."""
    config, skip, precision = (
        store.read_json(store.checkpoint_folder(c.path) / "config.json"),
        c.variant.skip,
        c.variant.precision,
    )
    try:
        ceiling = costs.ceiling(config, skip, precision, length, decode, batch)
    except UserError as error:
        log.warning("%s", error)
        return None, None, None
    return (
        ceiling,
        costs.weight_bytes(config, skip, precision) / 1e6,
        costs.cache_bytes(config, skip, precision),
    )


def _conditions(
    sequences: int,
    batch: int,
    decode: bool,
    threads: int,
    unchecked: bool,
    clock: stopwatch.Clock,
    taking_part: list[Contestant],
) -> dict[str, Any]:
    told = clock.idle() is not None
    return {
        "measure": "one further token on a cache" if decode else "1 token for each sequence (prefill)",
        "decode": decode,
        "sequences": sequences,
        "batch": batch,
        "threads": threads,
        "device": machine.device(taking_part[0].path),
        "checked": not unchecked,
        "foreign_load": "recognised" if told else "not measured on this system",
        "allowance": f"max({stopwatch.TICK} s, {stopwatch.SHARE:.0%} of the processors' time)"
        if told
        else None,
        "how": {c.name: c.how for c in taking_part},
        "agreement": {},
        "ceiling_of": "bytes read" if decode else "FLOPs",
        "versions": store.versions(*_PACKAGES),
    }


def _write(contestant: Contestant, rows: list[Latency], conditions: dict[str, Any]) -> Path:
    """The artefact's own rows, and those of PyTorch and optimum on the same variant."""
    path, variant = contestant.path, contestant.variant
    names = {contestant.name, f"{contestant.name} (torch)", f"{contestant.name} (optimum)"}
    result = store.result_path(
        store.model_of(path), path, "bench.decode" if conditions["decode"] else "bench"
    )
    identity = {**store.variant_record(variant), "artefact": str(path), "sha256": store.sha256(path)}
    mine = [asdict(row) for row in rows if row.name in names]
    store.write_json(result, {"what": "bench", **identity, "conditions": conditions, "rows": mine})
    return result
