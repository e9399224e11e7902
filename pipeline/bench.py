"""Stage: the papers' measurement. The time to predict 1 token for each of 1000 sequences (Tyukin et al. 2024, §3.3).

Sequences are real text cut to exact length, batch 1, K = 1. Base and variants (and, where asked, PyTorch and optimum's
graph of the same variant) are interleaved sequence by sequence in one process. Every contestant returns what the next
step would need, the logits and the cache; feeds are made before the clock starts.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from pipeline import backends, costs, stopwatch, store, texts
from pipeline.types import Precision, SkipSet, UserError, Variant

log = logging.getLogger(__name__)
_SLACK = 0.03  # a speed-up so far above its ceiling is still noise


@dataclass(frozen=True, slots=True)
class Latency:
    """One contestant at one length.

    Attributes:
        name: the variant, with ' (torch)' or ' (optimum)' behind it where it is not the artefact itself.
        total: seconds for all sequences, as in the papers' tables.
        p50, p90, p99: milliseconds.
        improvement: % of the base's median time that is saved. The base of PyTorch rows is the base graph too.
        ceiling: % that the removed FLOPs (prefill) or bytes (decode) allow.
        share: improvement / ceiling; None where nothing is removed.
        disturbed: samples taken again because other work held the processor.
        unclean: samples kept although each of their tries was disturbed.
    """

    name: str
    length: int
    total: float
    p50: float
    p90: float
    p99: float
    improvement: float
    ceiling: float
    share: float | None
    above_ceiling: bool
    disturbed: int
    unclean: int
    peak_mb: float | None
    weight_mb: float
    cache_bytes_per_token: int


@dataclass(frozen=True, slots=True)
class Report:
    """All rows of one run, and how it was run."""

    rows: list[Latency]
    conditions: dict[str, Any]
    results: list[str]

    def record(self) -> dict[str, Any]:
        return {"conditions": self.conditions, "rows": [asdict(row) for row in self.rows], "results": self.results}


@dataclass(frozen=True)
class Contestant:
    """Something to time: `start(sequences)` makes the feeds and returns what runs one of them."""

    name: str
    path: Path
    variant: Variant
    start: Callable[[Any], Callable[[int], None]]
    is_artefact: bool


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
) -> Report:
    """Times the artefacts and their base, and writes evals/results/<model>/<artefact>.bench.json for each.

    Args:
        decode: time one further token on a cache of each length instead of the prefill.
        compare: 'torch' and 'optimum' add the same variants under PyTorch eager and optimum's graph.
        optimum_graphs: artefact → optimum's graph of the same variant.
        threads: of every contestant; 0 is one a core.

    Raises:
        UserError: an artefact has not passed its check, or does not run here.
    """
    if sequences < 1 or batch < 1 or not lengths or min(lengths) < 1:
        raise UserError("--sequences, --batch and --lengths must be at least 1")
    if strange := set(compare) - {"torch", "optimum"}:
        raise UserError(f"--compare takes torch and optimum, not {', '.join(sorted(strange))}")
    paths = _with_bases(paths)
    if not unchecked:
        for path in paths:
            if not store.check_passed(path):
                raise UserError(f"{path} has passed no check; run `pipeline check {path}`, or pass --unchecked")
    threads = threads or os.cpu_count() or 1
    contestants = _contestants(paths, compare, optimum_graphs or {}, threads, decode)
    memory = {str(path): _peak_memory(path, max(lengths), threads) for path in paths}
    rows: list[Latency] = []
    with Progress(console=Console(stderr=True), transient=True) as bar:
        for length in lengths:
            task = bar.add_task(f"{length} tokens", total=sequences)
            tokens = texts.token_sequences(store.checkpoint_folder(paths[0]), length + decode, sequences * batch)
            runs = [c.start(tokens.reshape(sequences, batch, -1)) for c in contestants]
            for run in runs:  # warm-up: kernels chosen, memory allocated
                run(0)
            samples = stopwatch.interleave(runs, sequences, tick=lambda task=task: bar.advance(task))  # type: ignore[misc]
            rows += _rows(contestants, samples, length, decode, memory)
    conditions = _conditions(sequences, batch, decode, threads, unchecked)
    return Report(rows, conditions, [str(_write(c, rows, conditions)) for c in contestants if c.is_artefact])


def _with_bases(paths: list[Path]) -> list[Path]:
    """The artefacts of one model, each with its base before it where the base is there."""
    found: list[Path] = []
    for path in paths:
        variant = store.variant_of(store.read_sidecar(path))
        base = (
            path.with_name(f"base.{variant.precision}.onnx")
            if path.suffix == ".onnx"
            else path.parent.parent / "base" / path.name
        )
        if not base.is_file():
            raise UserError(
                f"{base} is missing: a variant is measured beside its base; make it with `pipeline export` or `build-engine`"
            )
        found += [base, path]
    models = {store.variant_of(store.read_sidecar(path)).model for path in found}
    if len(models) > 1:
        raise UserError(f"one model at a time: these are of {', '.join(sorted(models))}")
    return list(dict.fromkeys(found))


def _contestants(
    paths: list[Path], compare: tuple[str, ...], twins: dict[Path, Path], threads: int, decode: bool
) -> list[Contestant]:
    made = []
    for path in paths:
        variant = store.variant_of(store.read_sidecar(path))
        made.append(Contestant(_label(path, variant), path, variant, _runner(path, threads, decode), True))
    for path in [p for p in paths if "torch" in compare]:
        variant = store.variant_of(store.read_sidecar(path))
        start = _torch(store.checkpoint_folder(path), variant.skip, variant.precision, threads, decode)
        made.append(Contestant(f"{variant.name} (torch)", path, variant, start, False))
    for path, twin in twins.items():
        variant = store.variant_of(store.read_sidecar(path))
        made.append(Contestant(f"{variant.name} (optimum)", path, variant, _runner(twin, threads, decode), False))
    return made


def _label(path: Path, variant: Variant) -> str:
    return f"{variant.name}.{variant.precision}" if path.suffix == ".onnx" else f"{variant.name}/{path.stem}"


def _runner(path: Path, threads: int, decode: bool) -> Callable[[Any], Callable[[int], None]]:
    """A graph or an engine, opened once."""
    runner = backends.open_runner(path, threads=threads)

    def start(tokens: Any) -> Callable[[int], None]:
        if decode:
            _, cache = runner.forward(tokens[0][:, :-1])
            feeds = [runner.feeds(rows[:, -1:], cache, np.ones_like(rows)) for rows in tokens]
        else:
            feeds = [runner.feeds(rows) for rows in tokens]

        def run(k: int) -> None:
            runner.infer(feeds[k])

        return run

    return start


def _torch(
    folder: Path, skip: SkipSet, precision: Precision, threads: int, decode: bool
) -> Callable[[Any], Callable[[int], None]]:
    """PyTorch eager as Hugging Face runs it: use_cache=True, the LM head at the last token only."""
    import torch

    from pipeline.reference import Reference

    torch.set_num_threads(threads)
    model = Reference(folder, skip, precision).model

    def start(tokens: Any) -> Callable[[int], None]:
        rows = [torch.from_numpy(np.ascontiguousarray(part)) for part in tokens]
        if decode:
            raise UserError("--decode is not compared with torch: its cache cannot leave layer 0's attention out")

        def run(k: int) -> None:
            with torch.inference_mode():
                model(input_ids=rows[k], use_cache=True, logits_to_keep=1)

        return run

    return start


def _rows(
    contestants: list[Contestant], samples: list[stopwatch.Samples], length: int, decode: bool, memory: dict[str, float | None]
) -> list[Latency]:
    medians = {c.name: float(np.median(s.seconds)) for c, s in zip(contestants, samples, strict=True)}
    rows = []
    for c, s in zip(contestants, samples, strict=True):
        config = store.read_json(store.checkpoint_folder(c.path) / "config.json")
        base_path = _with_bases([c.path])[0]
        base = medians[_label(base_path, store.variant_of(store.read_sidecar(base_path)))]
        saved = 1 - medians[c.name] / base
        allowed = 1 - 1 / costs.ceiling(config, c.variant.skip, c.variant.precision, length, decode)
        quantiles = [float(q) * 1e3 for q in np.percentile(s.seconds, [50, 90, 99])]
        rows.append(
            Latency(
                c.name, length, sum(s.seconds), *quantiles, 100 * saved, 100 * allowed, saved / allowed if allowed else None,
                c.is_artefact and bool(c.variant.skip) and saved > allowed + _SLACK, s.disturbed, s.kept_disturbed,
                memory.get(str(c.path)) if c.is_artefact else None,
                costs.weight_bytes(config, c.variant.skip, c.variant.precision) / 1e6,
                costs.cache_bytes(config, c.variant.skip, c.variant.precision),
            )
        )  # fmt: skip
    return rows


_CHILD = """
import json, sys
from pathlib import Path
import numpy as np
from pipeline import backends
runner = backends.open_runner(Path(sys.argv[1]), threads=int(sys.argv[3]))
runner.forward(np.full((1, int(sys.argv[2])), 5))
lines = Path("/proc/self/status").read_text().splitlines()
print(json.dumps(int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024))
"""


def _peak_memory(path: Path, length: int, threads: int) -> float | None:
    """Peak resident MB of a process that loads this artefact alone and runs one sequence; None where that is unknown."""
    if not Path("/proc/self/status").is_file():
        return None
    command = [sys.executable, "-c", _CHILD, str(path), str(length), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{path} does not run: {done.stderr.strip().splitlines()[-1]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def _conditions(sequences: int, batch: int, decode: bool, threads: int, unchecked: bool) -> dict[str, Any]:
    packages = ("onnxruntime-gpu", "torch", "transformers", "numpy")
    return {
        "measure": "one further token on a cache" if decode else "1 token for each sequence (prefill)",
        "sequences": sequences,
        "batch": batch,
        "threads": threads,
        "device": _processor(),
        "checked": not unchecked,
        "foreign_load": "recognised" if stopwatch.busy_seconds() is not None else "not measured on this system",
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()} ({os.cpu_count()} cores seen)"


def _write(contestant: Contestant, rows: list[Latency], conditions: dict[str, Any]) -> Path:
    """The artefact's own rows, and those of PyTorch and optimum on the same variant."""
    path, variant = contestant.path, contestant.variant
    mine = [row for row in rows if row.name in (contestant.name, f"{variant.name} (torch)", f"{variant.name} (optimum)")]
    result = store.result_path(variant.model, path, "bench.decode" if "further" in conditions["measure"] else "bench")
    identity = {**store.variant_record(variant), "artefact": str(path), "sha256": store.sha256(path)}
    store.write_json(result, {"what": "bench", **identity, "conditions": conditions, "rows": [asdict(row) for row in mine]})
    return result


def table(report: Report) -> Table:
    """The report for a person."""
    made = Table(
        title=f"{report.conditions['measure']}, {report.conditions['sequences']} sequences, {report.conditions['device']}"
    )
    for heading in (
        "variant",
        "tokens",
        "total s",
        "p50 ms",
        "p90",
        "p99",
        "saved %",
        "ceiling %",
        "of it",
        "peak MB",
        "KV B/token",
        "again",
    ):
        made.add_column(heading, justify="left" if heading == "variant" else "right", no_wrap=True)
    for row in report.rows:
        share = "" if row.share is None else f"{row.share:.0%}" + (" above: measurement?" if row.above_ceiling else "")
        made.add_row(
            row.name, str(row.length), f"{row.total:.2f}", f"{row.p50:.1f}", f"{row.p90:.1f}", f"{row.p99:.1f}", f"{row.improvement:.1f}",
            f"{row.ceiling:.1f}", share, "" if row.peak_mb is None else f"{row.peak_mb:.0f}", str(row.cache_bytes_per_token),
            f"{row.disturbed}" + (f" ({row.unclean} kept)" if row.unclean else ""),
        )  # fmt: skip
    return made
