"""Result files as `check`, `bench` and `score` write them, made from the code's own dataclasses, for a grid of variants."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import store
from pipeline.calib import measures, similarity
from pipeline.evals.bench.latency import Latency
from pipeline.evals.score.results import Score
from pipeline.types import SkipSet
from tests import tiny

LAYERS = 32
DEVICE = "Some CPU (2 cores seen)"


def digest(*parts: str) -> str:
    return hashlib.sha256("/".join(parts).encode()).hexdigest()


def put(path: Path, record: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))
    return path


def config(model: str, layers: int = LAYERS) -> Path:
    return put(Path("graphs") / model / "config.json", {"num_hidden_layers": layers})


def _identity(model: str, variant: str, precision: str) -> dict[str, Any]:
    skip = SkipSet.parse(variant.partition("~")[0])
    return {
        "model": model,
        "variant": variant,
        "skip": {"attention": list(skip.attention), "mlp": list(skip.mlp)},
        "precision": precision,
        "adapter": variant.partition("~")[2] or None,
        "head": "gather",
        "artefact": f"graphs/{model}/{variant}.{precision}.onnx",
        "sha256": digest(model, variant, precision),
    }


def check(model: str, variant: str, passed: bool = True, precision: str = "fp32") -> Path:
    record = {
        "what": "check",
        **_identity(model, variant, precision),
        "passed": passed,
        "versions": {"torch": "2.13"},
    }
    record |= {
        "failures": [] if passed else ["length 50: prefill/logits: max_rel 0.4 above 0.003"],
        "device": DEVICE,
    }
    return put(Path("evals/results") / model / f"{variant}.{precision}.check.json", record)


def bench(
    model: str,
    variant: str,
    saved: float,
    *,
    lengths: tuple[int, ...] = (50, 100),
    precision: str = "fp32",
    **changes: Any,
) -> Path:
    identity = _identity(model, variant, precision)
    rows = []
    for length in lengths:
        p50 = 2.0 * length * (1 - saved / 100)
        row = Latency(
            artefact=identity["artefact"], name=f"{variant}.{precision}", kind="artefact", length=length, total=p50 / 10, p50=p50,
            p90=p50 * 1.05, p99=p50 * 1.2, improvement=saved, interval=(saved - 1, saved + 1),
            ceiling=0.0 if variant == "base" else saved + 0.5, share=None, above_ceiling=False, disturbed=0, clean=100,
            enough_clean=True, peak_mb=900.0, before_mb=100.0, weight_mb=500 - saved, cache_bytes_per_token=46080,
        )  # fmt: skip
        rows.append(asdict(row) | changes)
    how = {
        "decode": False,
        "sequences": 100,
        "batch": 1,
        "threads": 2,
        "device": DEVICE,
        "checked": True,
        "versions": {"onnxruntime-gpu": "1.31.1"},
    }
    return put(
        Path("evals/results") / model / f"{variant}.{precision}.bench.json",
        {"what": "bench", **identity, "conditions": how, "rows": rows},
    )


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
    identity = _identity(model, variant, precision)
    fields: dict[str, Any] = {
        "variant": variant, "artefact": identity["artefact"], "sha256": identity["sha256"],
        "benchmark": benchmark, "title": benchmark.upper(),
        "metric": "loss" if "loss" in benchmark else "acc_norm", "value": value, "stderr": stderr, "n": 1000, "limit": None,
        "num_fewshot": None, "protocol": "lm-eval", "complete": True, "shots": None, "checked": True, "work": {"tokens": 1},
    }  # fmt: skip
    made = Score(**{**fields, **changes})
    record = {
        "results": {benchmark: {"alias": benchmark, f"{made.metric},none": value, f"{made.metric}_stderr,none": stderr}},
        "versions": {benchmark: 1.0}, "n-shot": {benchmark: 0}, "higher_is_better": {benchmark: {made.metric: True}},
        "n-samples": {benchmark: {"original": 1000, "effective": 1000}}, "configs": {benchmark: {}}, "group_subtasks": {},
        "config": {"model": "pipeline", "artefact": identity["artefact"], "device": DEVICE, "limit": made.limit},
        "date": 1764000000.0, "lm_eval_version": "0.4.13", "pipeline": asdict(made),
    }  # fmt: skip
    return put(Path("evals/results") / model / f"{variant}.{precision}.score.{made.key}.json", record)


def whole(model: str, variant: str, saved: float, average: float, stderr: float = 0.01) -> None:
    """A variant with check, latency and the four scores of the average, each of this value."""
    check(model, variant)
    bench(model, variant, saved)
    for benchmark in ("arc", "hellaswag", "truthfulqa", "mmlu"):
        score(model, variant, benchmark, average, stderr)


def ledger(jobs: list[dict[str, Any]], name: str = "demo") -> Path:
    fields = (
        "id",
        "stage",
        "model",
        "kind",
        "frac",
        "select",
        "variant",
        "precision",
        "task",
        "state",
        "error",
        "seconds",
    )
    full = [{**dict.fromkeys(fields), "command": [], "outputs": [], **job} for job in jobs]
    return put(
        Path("evals/sweeps") / name / "ledger.json",
        {"what": "sweep", "recipe": "evals/recipes/demo.toml", "jobs": full},
    )


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


def statistics(model: str, layers: int) -> None:
    """What `calibrate` writes, of a stream [layers + 1, 8, 16] that grows by noise."""
    sums, generator = measures.Sums(), np.random.default_rng(0)
    for _ in range(3):
        streams = np.cumsum(generator.normal(size=(layers + 1, 8, 16)), axis=0)
        sums.add(measures.measure(streams, (streams[:-1] + streams[1:]) / 2, 2))
    similarity.write(store.Project().calib(model), tiny.similarity_record(model=model), sums)


def many(model: str, artefacts: int) -> None:
    """Three results each, a check, a latency and a score, of so many variants of 64 layers."""
    config(model, 64)
    for n in range(artefacts):
        variant = f"attn{n % 60}+mlp{n // 60}" if n else "base"
        check(model, variant)
        bench(model, variant, 1.0 + n % 60 / 10, lengths=(50,))
        score(model, variant, "arc", 0.3 + n // 60 / 200)
