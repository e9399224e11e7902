"""Stage: the papers' measurement, the time to predict 1 token for each of 1000 sequences.

The protocol is that of Tyukin et al. 2024, §3.3.
Sequences are real text cut to exact length, batch 1, K = 1. Base and variants (and, where wanted, PyTorch and
optimum's graph of the same variant) are interleaved sequence by sequence in one process.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from pipeline import store
from pipeline.engines import opening
from pipeline.evals import machine, passed
from pipeline.evals.bench import contestants, gpu_watch, memory, stopwatch
from pipeline.evals.bench.contestants import Contestant, RunSequence
from pipeline.evals.bench.latency import latency, over_plain
from pipeline.evals.bench.memory import Resident
from pipeline.evals.bench.table import RECOGNISED, BenchReport
from pipeline.models import texts
from pipeline.models.costs import Workload
from pipeline.store import records
from pipeline.store.records import BenchRecord, Conditions, GpuLoad, Latency
from pipeline.types import Provider, UserError

_PACKAGES = (
    "skip-pipeline",
    "onnxruntime-gpu",
    "onnxruntime",
    "torch",
    "transformers",
    "optimum-onnx",
    "numpy",
)

WARM_UP = 2.0
"""Seconds of runs before the first sample on a GPU, whose clocks rise within one."""
_TIMING = "wall time, from tokens to logits on the host"
_ON_GPU = ", which waits for all that the GPU does"


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """How a measurement is run.

    Attributes:
        sequences: of each length.
        lengths: in tokens.
        batch: sequences at once.
        decode: time one further token on a cache of each length instead of the prefill.
        compare: 'torch' and 'optimum' add the same variants under PyTorch eager and optimum's graph.
        threads: of every contestant; 0 is one a core.
        unchecked: measure what has passed no check, and record that.
        write: False leaves no result behind, for a measurement that serves another one.
        provider: of ONNX Runtime, and PyTorch's device.

    Raises:
        UserError: a number is out of range, or there is no such comparison.
    """

    sequences: int = 1000
    lengths: tuple[int, ...] = (50, 100)
    batch: int = 1
    decode: bool = False
    compare: tuple[str, ...] = ()
    threads: int = 0
    unchecked: bool = False
    write: bool = True
    provider: Provider = "cpu"

    def __post_init__(self) -> None:
        if min(self.sequences, self.batch, *self.lengths, len(self.lengths)) < 1 or self.threads < 0:
            raise UserError(
                "--sequences, --batch and --lengths must be at least 1, and --threads not negative"
            )
        if max(self.sequences, self.batch, *self.lengths) > 10**9 or self.threads > 10_000:
            raise UserError(
                "--sequences, --batch and --lengths must be at most 10^9, and --threads at most 10,000"
            )
        if unknown := set(self.compare) - {"torch", "optimum"}:
            raise UserError(f"--compare takes torch and optimum, not {', '.join(sorted(unknown))}")


def bench(
    paths: list[Path],
    settings: BenchSettings | None = None,
    *,
    optimum_graphs: Mapping[Path, Path] | None = None,
    clock: stopwatch.Clock | None = None,
) -> BenchReport:
    """Times the artefacts and their base, and writes evals/results/<model>/….bench.json for each.

    Args:
        paths: graphs and engines of one model.
        settings: the papers' by default.
        optimum_graphs: artefact → optimum's graph of the same variant, for that comparison.
        clock: the machine's by default; tests bring their own.

    Raises:
        UserError: an artefact has not passed its check, does not run here, or all of them do not fit into
            memory at once, the machine's or what --device-memory gives.
    """
    paths, clock = contestants.with_bases(paths), clock or stopwatch.SystemClock()
    settings = settings or BenchSettings()
    settings = dataclasses.replace(settings, threads=settings.threads or clock.processors)
    for path in () if settings.unchecked else paths:
        passed.require_check(path, provider=settings.provider)
    opening.require_room(paths, settings.provider, 1 + len(settings.compare))
    passes = memory.Passes(settings.batch, settings.lengths, settings.threads, settings.decode)
    resident = {path: memory.resident(path, passes, settings.provider) for path in paths}
    memory.require_room(resident)
    everyone = contestants.line_up(
        paths,
        compare=settings.compare,
        optimum_graphs=optimum_graphs,
        threads=settings.threads,
        decode=settings.decode,
        provider=settings.provider,
    )
    run = _Run(everyone, settings, clock, resident)
    rows, conditions = run.measured()
    own = [contestant for contestant in everyone if contestant.kind == "artefact" and settings.write]
    return BenchReport(rows, conditions, tuple(_write(one, rows, conditions) for one in own))


# ---- the run --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Run:
    """One interleaved measurement of all contestants."""

    everyone: list[Contestant]
    settings: BenchSettings
    clock: stopwatch.Clock
    resident: dict[Path, Resident | None]

    def measured(self) -> tuple[tuple[Latency, ...], Conditions]:
        """All rows, length by length, and how they came to be."""
        settings, rows, agreement, source = self.settings, list[Latency](), {}, ""
        loads = dict[str, GpuLoad]()
        folder = store.checkpoint_folder(self.everyone[0].path)
        settle = contestants.SETTLE if "torch" in settings.compare else 0.0
        with Progress(console=Console(stderr=True), transient=True, auto_refresh=False) as bar:
            for length in settings.lengths:
                count = settings.sequences * settings.batch
                tokens, source = texts.sequences(folder, length + settings.decode, count)
                batches = tokens.reshape(settings.sequences, settings.batch, -1)
                runs = [contestant.start(batches) for contestant in self.everyone]
                with gpu_watch.observing(self._is_on_gpu, self.clock.sleep) as seen:
                    agreement[str(length)] = self._warm_up(runs)
                    seen.begin()
                    tick = _ticker(bar, f"{length} tokens", settings.sequences)
                    samples = stopwatch.interleave(
                        runs, settings.sequences, tick, settle=settle, clock=self.clock
                    )
                if seen.load:
                    loads[str(length)] = seen.load
                rows += self._rows(samples, length, bool(seen.load and seen.load.problems))
        return tuple(rows), self._conditions(agreement, source, loads)

    @property
    def _is_on_gpu(self) -> bool:
        return self.settings.provider == "cuda" or self.everyone[0].path.suffix == ".plan"

    def _warm_up(self, runs: list[RunSequence]) -> dict[str, float]:
        """Two runs each, so that kernels are chosen and memory is there; on a GPU more, for its clocks.

        Returns:
            Name of PyTorch's or optimum's contestant → largest difference of its logits from the artefact's.

        Raises:
            UserError: a comparison does not compute what its artefact computes; its time would say nothing.
        """
        logits = {}
        for contestant, run in zip(self.everyone, runs, strict=True):
            run(0)
            logits[contestant.name] = np.array(run(0), np.float64)[:, -1]
        differences = {}
        for contestant in self.everyone:
            if contestant.kind == "artefact":
                continue
            own = logits[contestants.name_of(contestant.path)]
            difference = float(np.abs(own - logits[contestant.name]).max())
            share = 0.1 if contestant.variant.precision == "fp16" else 0.01
            if not difference <= share * max(1.0, float(np.abs(own).max())):
                raise UserError(
                    f"{contestant.name} and {contestant.path} give other logits ({difference:.2g} apart); "
                    "run `pipeline check --force`"
                )
            differences[contestant.name] = difference
        if self._is_on_gpu:
            stopwatch.warm_up(runs, WARM_UP, self.clock)
        return differences

    def _rows(self, samples: list[stopwatch.Samples], length: int, is_disturbed: bool) -> list[Latency]:
        """A row for each contestant; what disturbed the GPU disturbed all of them."""
        work = Workload(length, self.settings.decode, self.settings.batch)
        own = {
            contestant.path: one
            for contestant, one in zip(self.everyone, samples, strict=True)
            if contestant.kind == "artefact"
        }
        named = {path.resolve(): (contestants.name_of(path), one) for path, one in own.items()}
        rows = []
        for contestant, one in zip(self.everyone, samples, strict=True):
            base = contestants.base_of(contestant.path)
            resident = self.resident.get(contestant.path) if contestant.kind == "artefact" else None
            skip = store.variant(base, quick=True).skip
            plain = contestants.plain_base_of(contestant.path, base)
            beside = named.get(plain.resolve()) if plain else None
            row = latency(contestant, one, own[base], work, resident, skip)
            if beside:
                row = row.replaced(over_plain=over_plain(contestant, one, beside, work, skip))
            rows.append(row.replaced(enough_clean=row.enough_clean and not is_disturbed))
        return rows

    def _conditions(
        self, agreement: dict[str, dict[str, float]], source: str, loads: dict[str, GpuLoad]
    ) -> Conditions:
        settings, is_recognised = self.settings, self.clock.idle() is not None
        bases = [contestants.base_of(contestant.path) for contestant in self.everyone]
        allowance = f"max({stopwatch.TICK} s, {stopwatch.SHARE:.0%} of the processors' time)"
        return Conditions(
            measure=(
                "one further token on a cache" if settings.decode else "1 token for each sequence (prefill)"
            ),
            decode=settings.decode,
            sequences=settings.sequences,
            batch=settings.batch,
            threads=settings.threads,
            device=machine.device(self.everyone[0].path, settings.provider),
            checked=not settings.unchecked,
            foreign_load=RECOGNISED if is_recognised else "not measured on this system",
            allowance=allowance if is_recognised else None,
            how={contestant.name: contestant.how for contestant in self.everyone},
            agreement=agreement,
            ceiling_of="bytes read" if settings.decode else "FLOPs",
            versions=store.versions(*_PACKAGES),
            tokens=source,
            against=", ".join(dict.fromkeys(store.variant(base, quick=True).name for base in bases)),
            provider=store.provider_of(self.everyone[0].path, settings.provider),
            timing=_TIMING + (_ON_GPU if self._is_on_gpu else ""),
            warm_up=WARM_UP if self._is_on_gpu else 0.0,
            gpu=loads,
        )


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


def _write(contestant: Contestant, rows: tuple[Latency, ...], conditions: Conditions) -> Path:
    """Writes the artefact's own rows, and those of PyTorch and optimum on the same variant."""
    path = contestant.path
    result = store.result_of(path, "bench.decode" if conditions.decode else "bench", contestant.provider)
    artefact = store.relative(path, result)
    record = BenchRecord(
        **records.variant_fields(contestant.variant),
        artefact=artefact,
        sha256=store.sha256(path),
        weights=store.sidecar(path).weights,
        conditions=conditions.replaced(provider=store.provider_of(path, contestant.provider)),
        rows=tuple(row.replaced(artefact=artefact) for row in rows if row.artefact == str(path)),
    )
    store.write_json(result, record.plain())
    return result
