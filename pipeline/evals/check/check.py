"""Stage: a graph or an engine beside PyTorch, run and compared by Polygraphy → evals/results/<model>/….check.json.

Each feed is played as prefill and eight decode steps on the artefact's own cache; PyTorch computes the same by one whole
forward pass. An fp16 artefact is held against float32, with float16 PyTorch beside it as the measure of its noise.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from polygraphy.comparator import Comparator, IterationResult, RunResults
from polygraphy.logger import G_LOGGER

from pipeline import store
from pipeline.engines import opening
from pipeline.evals import machine
from pipeline.evals.check.agreement import LIMITS, Agreement, CompareOutputs, Found, judge
from pipeline.evals.check.localize import first_divergence
from pipeline.evals.check.scripted import LENGTHS, STEPS, ArtefactRunner, Feed, TorchRunner, feeds
from pipeline.graphs import graphfile
from pipeline.models import texts
from pipeline.runtime.runner import Array
from pipeline.types import UserError

log = logging.getLogger(__name__)
_PACKAGES = ("skip-pipeline", "torch", "transformers", "polygraphy", "numpy")
_RUNTIMES = {
    ".onnx": ("onnxruntime-gpu", "onnxruntime"),
    ".plan": ("tensorrt-rtx-cu13-bindings", "tensorrt-cu13"),
}
"""What the numbers of a check may depend on."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The outcome of one check.

    Attributes:
        path: the artefact.
        passed: every output of every feed is within its limits.
        result: the JSON with everything.
        fresh: False where an earlier check of the same artefact stands.
        data: what the JSON holds.
    """

    path: Path
    passed: bool
    result: Path
    fresh: bool
    data: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """For machines: the JSON's content and where it lies."""
        return {
            "path": str(self.path),
            "result": str(self.result),
            "already_checked": not self.fresh,
            **self.data,
        }

    def summary(self) -> str:
        """For people: the verdict with the worst logits, and on failure the reason and the place."""
        worst = self.data["worst"]
        lines = [
            f"{'passed' if self.passed else 'FAILED'}{'' if self.fresh else ' (already checked)'}  {self.path}"
        ]
        if worst:
            lines[0] += (
                f"  logits: max abs {worst['max_abs']:.1e}, max rel {worst['max_rel']:.1e}, cosine {worst['cosine']:.8f}, "
                f"top-1 {worst['top1']:.0%}, top-5 {worst['top5']:.0%}"
            )
        lines += [f"  {failure}" for failure in self.data["failures"][:3]]
        if len(self.data["failures"]) > 3:
            lines.append(f"  … and {len(self.data['failures']) - 3} more in {self.result}")
        if self.data["unstable"]:
            lines.append(
                f"  {len(self.data['unstable'])} of {self.data['outputs']} outputs are unstable in fp16 (rounding alone moves "
                "PyTorch as far): held to PyTorch's own error only"
            )
        if self.data.get("localized"):
            lines.append(f"  first divergence: {self.data['localized']}")
        return "\n".join(lines)


def check(
    path: Path, *, localize: bool = False, force: bool = False, reference: Path | None = None, seed: int = 0
) -> Comparison:
    """Runs an artefact beside PyTorch and writes the result; a passed check of the same file is not repeated.

    Args:
        path: graph (.onnx) or engine (.plan).
        localize: name the first sublayer that diverges, also where everything passes (a failure is always localized).
        force: check again what has passed.
        reference: the Hugging Face folder to compare with; by default the checkpoint that the artefact lies beside. A graph
            that optimum exported brings no checkpoint along, and needs it.
        seed: of the random tokens, used only for a model without a tokenizer.

    Raises:
        UserError: no such artefact, this machine cannot run it, or its checkpoint cannot be loaded by transformers.
    """
    record = store.read_sidecar(path)
    if record.get("artefact") == "merged":
        raise UserError(f"{path} is a merged graph; check the variants that it was merged from")
    model = store.model_of(path)
    result = store.result_path(model, path, "check")
    if not (localize or force) and store.check_passed(path):
        log.info("%s: already checked, %s", path, result)
        return Comparison(path, True, result, False, store.read_json(result))
    folder = reference or store.checkpoint_folder(path)
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{folder} holds no safetensors to compare with; run `pipeline check {path} --reference FOLDER` with its checkpoint"
        )
    if path.suffix == ".onnx":
        graphfile.load(path)  # refused before anything is said or run
    runs, data = _examine(path, record, folder, localize, seed)
    _save_runs(runs, store.result_path(model, path, "check.run"))
    store.write_json(result, data)
    return Comparison(path, data["passed"], result, True, data)


# ---- running and comparing ------------------------------------------------------------------------------------------


def _examine(
    path: Path, record: dict[str, Any], folder: Path, localize: bool, seed: int
) -> tuple[RunResults, dict[str, Any]]:
    """Plays every feed on both sides → (the runs, the result's JSON)."""
    start = time.perf_counter()
    made, source = _feeds(folder, seed)
    log.info("%s: comparing with PyTorch on %d feeds", path, len(made))
    runs, found, noise = _compare(path, record, folder, made)
    verdict = judge(found)
    where = _localize(path, folder, made, found) if localize or not verdict["passed"] else None
    return runs, {
        "what": "check",
        "artefact": str(path),
        "sha256": record["sha256"],
        **store.variant_record(store.variant_of(record)),
        **verdict,
        "localized": where,
        "limits": asdict(LIMITS[record["precision"]]),
        "checkpoint": str(folder),
        "references": ["fp32", *(["fp16"] if noise else [])],
        "tokens": source,
        "feeds": {name: _records(outputs) for name, outputs in found.items()},
        "noise": {name: _records(outputs) for name, outputs in noise.items()},
        "versions": store.versions(*_PACKAGES, *_RUNTIMES[path.suffix]),
        "device": machine.device(path),
        "seconds": round(time.perf_counter() - start, 1),
    }


def _compare(
    path: Path, record: dict[str, Any], folder: Path, made: list[Feed]
) -> tuple[RunResults, Found, Found]:
    """(the runs, artefact against fp32, and for fp16 artefacts PyTorch in fp16 against fp32)."""
    variant = store.variant_of(record)
    precision, healed = variant.precision, store.healed_weights(path)
    runners = [
        ArtefactRunner(lambda: opening.open_runner(path), path.stem),
        TorchRunner(folder, variant.skip, "fp32", healed),
        *([TorchRunner(folder, variant.skip, "fp16", healed)] if precision == "fp16" else []),
    ]
    names = [feed.name for feed in made]
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        runs = Comparator.run(runners, data_loader=[feed.arrays for feed in made])
        noise = _judge(runs, (2, 1), CompareOutputs(LIMITS[precision]), names) if precision == "fp16" else {}
        own = [{name: agreement.max_rel for name, agreement in outputs.items()} for outputs in noise.values()]
        func = CompareOutputs(LIMITS[precision], own)
        return runs, _judge(runs, (0, 1), func, names), noise


def _judge(runs: RunResults, pair: tuple[int, int], func: CompareOutputs, names: list[str]) -> Found:
    with np.errstate(
        invalid="ignore"
    ):  # Polygraphy takes statistics of what may hold NaN; the verdict is ours
        accuracy = Comparator.compare_accuracy(runs, comparisons=[pair], compare_func=func)
    # Polygraphy 0.53 gives one AccuracyResult a function, earlier ones the only one bare.
    result = accuracy[0] if len(accuracy) and not isinstance(next(iter(accuracy)), tuple) else accuracy
    (iterations,) = result.values()
    return dict(zip(names, (dict(found) for found in iterations), strict=True))


def _localize(path: Path, folder: Path, made: list[Feed], found: Found) -> str:
    """The first sublayer that diverges, on the feed that failed first (or the one padded on the left)."""
    if path.suffix != ".onnx":
        return "an engine's inner values cannot be read; run `pipeline check --localize` on the graph that it was built from"
    failed = [feed for feed in made if not all(found[feed.name].values())]
    divergence = first_divergence(path, folder, failed[0] if failed else made[-2])
    wrong = sorted(
        {
            int(name.split(".")[1])
            for out in found.values()
            for name, a in out.items()
            if "present." in name and not a
        }
    )
    if (
        divergence.error is None and wrong
    ):  # fp16 noise hid it in the stream, but a cache tensor cannot be the head's fault
        return f"layer {wrong[0]} attn or the sublayer before it: its keys or values are the first to fail; fp16 noise hides the place"
    return str(divergence)


# ---- feeds ----------------------------------------------------------------------------------------------------------


def _feeds(folder: Path, seed: int) -> tuple[list[Feed], str]:
    """(the feeds, where their tokens are from)."""
    config = store.read_json(folder / "config.json")
    # Where rotary frequencies change beyond the original context, a short prefill rightly differs from the whole pass.
    context = min(
        config.get(key) or 10**9 for key in ("max_position_embeddings", "original_max_position_embeddings")
    )
    lengths = tuple(dict.fromkeys(min(length, max(context - STEPS, 1)) for length in LENGTHS))
    tokens, source = texts.sequences(folder, max(lengths) + STEPS, 2 * len(lengths), seed)
    return feeds(tokens, lengths), source


# ---- what is written ------------------------------------------------------------------------------------------------


def _records(outputs: dict[str, Agreement]) -> dict[str, Any]:
    return {name: agreement.record() for name, agreement in outputs.items()}


def _save_runs(runs: RunResults, path: Path) -> None:
    """Polygraphy's JSON, which `polygraphy inspect data` opens.

    Kept small: of each feed only the last row's logits at the last prefill position and the last decode step.
    """
    small = RunResults()
    for name, iterations in runs.items():
        kept = [IterationResult(_last_logits(it), runtime=it.runtime, runner_name=name) for it in iterations]
        small.append((name, kept))
    with store.atomic(path) as temporary, G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        small.save(str(temporary))


def _last_logits(iteration: IterationResult) -> dict[str, Array]:
    return {
        name: np.ascontiguousarray(iteration[name][-1:, -1]) for name in ("prefill/logits", "decode/logits")
    }
