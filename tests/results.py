"""Result files as the stages write them, for a grid of variants, without running a stage."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.calib import measures, similarity
from pipeline.store import Project, records
from pipeline.types import SkipSet, Variant

LAYERS = 32
DEVICE = "Some CPU (2 cores seen)"
RANGE = (1, 1, 1)
CHANCE = {"mmlu": 0.25, "boolq": 0.5}


def digest(*parts: str) -> str:
    return hashlib.sha256("/".join(parts).encode()).hexdigest()


def put(path: Path, record: Any) -> Path:
    """Writes JSON, of a record or of anything else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record.plain() if isinstance(record, records.Record) else record))
    return path


def csv_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def config(model: str, layers: int = LAYERS) -> Path:
    return put(Path("graphs") / model / "config.json", {"num_hidden_layers": layers})


def _variant(model: str, name: str, precision: str) -> Variant:
    skip, _, adapter = name.partition("~")
    weights, _, activations = precision.rpartition("-")
    return Variant(model, SkipSet.parse(skip), activations, adapter or None, quantisation=weights or None)  # type: ignore[arg-type]


def _fields(model: str, variant: str, precision: str) -> dict[str, Any]:
    """What check and bench say of their artefact."""
    fields = records.variant_fields(_variant(model, variant, precision))
    fields["skip"] = records.Skipped(**{kind: tuple(layers) for kind, layers in fields["skip"].items()})
    graph = f"../../../graphs/{model}/{variant}.{precision}.onnx"
    return {**fields, "artefact": graph, "sha256": digest(model, variant, precision)}


def check(model: str, variant: str, passed: bool = True, precision: str = "fp32") -> Path:
    record = records.CheckRecord(
        **_fields(model, variant, precision),
        passed=passed,
        versions={"torch": "2.13"},
        failures=() if passed else ("length 50: prefill/logits: max_rel 0.4 above 0.003",),
        device=DEVICE,
    )
    return put(Project().results(model) / f"{variant}.{precision}.check.json", record)


def bench(
    model: str,
    variant: str,
    saved: float,
    *,
    lengths: tuple[int, ...] = (50, 100),
    precision: str = "fp32",
    decode: bool = False,
    **changes: Any,
) -> Path:
    fields = _fields(model, variant, precision)
    row = records.Latency(
        artefact=fields["artefact"],
        name=f"{variant}.{precision}",
        kind="artefact",
        length=1,
        total=0.0,
        p50=0.0,
        p90=0.0,
        p99=0.0,
        improvement=saved,
        interval=(saved - 1, saved + 1),
        ceiling=0.0 if variant == "base" else saved + 0.5,
        above_ceiling=False,
        clean=100,
        enough_clean=True,
        peak_mb=900.0,
        before_mb=100.0,
        weight_mb=500 - saved,
        cache_bytes_per_token=46080,
    )
    rows = []
    for length in lengths:
        p50 = (0.2 if decode else 2.0) * length * (1 - saved / 100)
        times = {"total": p50 / 10, "p50": p50, "p90": p50 * 1.05, "p99": p50 * 1.2}
        rows.append(row.replaced(length=length, **{**times, **changes}))
    conditions = records.Conditions(
        decode=decode,
        sequences=100,
        batch=1,
        threads=2,
        device=DEVICE,
        checked=True,
        versions={"onnxruntime": "1.27.0"},
    )
    record = records.BenchRecord(**fields, conditions=conditions, rows=tuple(rows))
    end = "bench.decode" if decode else "bench"
    return put(Project().results(model) / f"{variant}.{precision}.{end}.json", record)


def score(
    model: str,
    variant: str,
    benchmark: str,
    value: float,
    stderr: float | None = 0.01,
    *,
    precision: str = "fp32",
    **changes: Any,
) -> Path:
    fields = _fields(model, variant, precision)
    one = records.Score(
        variant=variant,
        artefact=fields["artefact"],
        sha256=fields["sha256"],
        benchmark=benchmark,
        title=benchmark.upper(),
        metric="loss" if "loss" in benchmark else "acc_norm",
        value=value,
        stderr=stderr,
        chance=CHANCE.get(benchmark),
        n=1000,
        protocol="lm-eval",
        complete=True,
        checked=True,
        work={"tokens": 1},
    ).replaced(**changes)
    results = {
        "alias": benchmark,
        f"{one.metric},none": value,
        f"{one.metric}_stderr,none": stderr,
    }
    record = {
        "results": {benchmark: results},
        "versions": {benchmark: 1.0},
        "n-shot": {benchmark: 0},
        "higher_is_better": {benchmark: {one.metric: True}},
        "n-samples": {benchmark: {"original": 1000, "effective": 1000}},
        "configs": {benchmark: {}},
        "group_subtasks": {},
        "config": {
            "model": "pipeline",
            "artefact": fields["artefact"],
            "device": DEVICE,
            "limit": one.limit,
        },
        "date": 1764000000.0,
        "lm_eval_version": "0.4.13",
        "pipeline": one.plain(),
    }
    return put(Project().results(model) / f"{variant}.{precision}.score.{one.key}.json", record)


def whole(model: str, variant: str, saved: float, average: float, stderr: float = 0.01) -> None:
    """A variant with check, latency and the four scores of the average, each of this value."""
    check(model, variant)
    bench(model, variant, saved)
    for benchmark in ("arc", "hellaswag", "truthfulqa", "mmlu"):
        score(model, variant, benchmark, average, stderr)


def engine(model: str, variant: str) -> Path:
    """The sidecar of an FP16 TensorRT-RTX engine that did not run, and an empty plan."""
    of = _variant(model, variant, "fp16")
    record = records.EngineRecord(
        file="tensorrt-rtx-sm89-fp16.plan",
        sha256="0" * 64,
        bytes=0,
        artefact="engine",
        model=model,
        variant=variant,
        precision="fp16",
        skip=records.Skipped(attention=of.skip.attention, mlp=of.skip.mlp),
        folder=f"../../../graphs/{model}",
        graph=records.FileDigest(file=f"{variant}.fp16.onnx", sha256="0" * 64),
        weights="0" * 64,
        backend="tensorrt-rtx",
        backend_version="1.3",
        targets=("sm89",),
        ranges=records.Ranges(batch=RANGE, length=RANGE, past=RANGE, wanted=RANGE),
        stripped=False,
        proven="parsed and built on a CPU; not run",
    )
    plan = Project().engine(model, variant, "tensorrt-rtx", "sm89", "fp16")
    put(plan.with_suffix(".json"), record)
    plan.touch()
    return plan


def job(stage: str, model: str, state: str, **changes: Any) -> records.LedgerEntry:
    return records.LedgerEntry(id=f"{stage}-{len(changes)}", stage=stage, model=model, state=state, **changes)


def ledger(jobs: list[records.LedgerEntry], name: str = "demo") -> Path:
    record = records.LedgerRecord(recipe="evals/recipes/demo.toml", recipe_sha256="0" * 64, jobs=tuple(jobs))
    return put(Project().sweep(name) / "ledger.json", record)


def small_grid(model: str = "SmolLM2-135M-Instruct", layers: int = LAYERS) -> None:
    """Base and one variant a kind."""
    config(model, layers)
    whole(model, "base", 0.0, 0.60)
    whole(model, "attn24-31", 8.0, 0.595)
    whole(model, "mlp24-31", 18.0, 0.50)
    whole(model, "block24-31", 25.0, 0.585)


def healed_grid(model: str) -> None:
    """`small_grid`, with the loss of base, of a variant and of that variant healed."""
    small_grid(model)
    for variant, value in (("base", 0.3), ("block24-31", 0.6), ("block24-31~heal", 0.4)):
        score(model, variant, "c4-loss", value, 0.001)


def compensated_grid(model: str) -> None:
    """`small_grid`, with times and losses of a variant as cut, compensated, and healed on top."""
    small_grid(model)
    score(model, "base", "c4-loss", 0.3, 0.001)
    for variant, saved, value in (
        ("mlp24-31", 18.0, 0.6),
        ("mlp24-31~linear", 15.0, 0.45),
        ("mlp24-31~fold+rank16", 14.0, 0.5),
        ("mlp24-31~linear~heal", 16.0, 0.4),
    ):
        bench(model, variant, saved)
        score(model, variant, "c4-loss", value, 0.001)


def statistics(model: str, layers: int) -> None:
    """What `calibrate` writes, of a stream [layers + 1, 8, 16] that grows by noise."""
    sums, generator = measures.Sums(), np.random.default_rng(0)
    for _ in range(3):
        streams = np.cumsum(generator.normal(size=(layers + 1, 8, 16)), axis=0)
        sums.add(measures.measure(streams, (streams[:-1] + streams[1:]) / 2, 2))
    request = records.SimilarityRequest(
        model=model,
        weights="abc",
        runner="torch",
        length=8,
        buckets=2,
        tokens=24,
        texts=records.TextSource(origin="noise"),
        wanted=3,
    )
    similarity.write(Project().calib(model), request, sums)


def many(model: str, artefacts: int) -> None:
    """Three results each, a check, a latency and a score, of so many variants of 64 layers."""
    config(model, 64)
    for n in range(artefacts):
        variant = SkipSet((n % 60,), (n // 60,)).name if n else "base"
        check(model, variant)
        bench(model, variant, 1.0 + n % 60 / 10, lengths=(50,))
        score(model, variant, "arc", 0.3 + n // 60 / 200)
