"""Stage: a graph or an engine beside PyTorch, compared by Polygraphy → evals/results/<model>/….check.json.

Each feed is played as prefill and eight decode steps on the artefact's own cache. PyTorch computes the same
by one whole forward pass. An fp16 artefact is compared with float32, and float16 PyTorch beside it is the
measure of its noise.
"""

from __future__ import annotations

import logging
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from polygraphy.comparator import IterationResult, RunResults
from polygraphy.logger import G_LOGGER

from pipeline import store
from pipeline.calib import adapters
from pipeline.evals import machine
from pipeline.evals.check import beside_llamacpp, beside_pytorch, scripted, shifts
from pipeline.evals.check import localize as localizing
from pipeline.evals.check.agreement import LIMITS, NOT_FINITE, judge
from pipeline.evals.check.crossings import Crossings, crossings, room
from pipeline.evals.check.scripted import Feed
from pipeline.graphs import graphfile
from pipeline.models import drop_lists, identity, texts, weight_files
from pipeline.models.checkpoint import open_checkpoint
from pipeline.models.config import read_config
from pipeline.runtime.runner import Array
from pipeline.store import records
from pipeline.store.records import CheckRecord, FileState, HealedProof, Ranges
from pipeline.types import CPU, Devices, UserError, Variant

log = logging.getLogger(__name__)
_PACKAGES = ("skip-pipeline", "torch", "transformers", "polygraphy", "numpy")
_RUNTIMES = {
    ".onnx": ("onnxruntime-gpu", "onnxruntime"),
    ".plan": ("tensorrt-rtx-cu13-bindings", "tensorrt-cu13"),
}
"""What the numbers of a check may depend on."""
SHOWN_FAILURES, SEED = 3, 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """The outcome of one check.

    Attributes:
        path: the artefact.
        result: the file that says everything.
        record: what the file says.
        fresh: False where an earlier check of the same artefact stands.
    """

    path: Path
    result: Path
    record: CheckRecord
    fresh: bool

    @property
    def passed(self) -> bool:
        """Whether every output of every feed is within its limits."""
        return self.record.passed

    def plain(self) -> dict[str, Any]:
        """For machines: the record, and where it lies."""
        place = {"path": str(self.path), "result": str(self.result), "already_checked": not self.fresh}
        return {**place, **self.record.plain()}

    def summary(self) -> str:
        """For people: the verdict with the worst logits, and on failure the reason and the place."""
        record = self.record
        verdict = f"{'passed' if record.passed else 'FAILED'}{'' if self.fresh else ' (already checked)'}"
        lines = [f"{verdict}  {self.path}"]
        if worst := record.worst:
            lines[0] += (
                f"  logits: max abs {worst['max_abs']:.1e}, max rel {worst['max_rel']:.1e}, "
                f"cosine {worst['cosine']:.8f}, top-1 {worst['top1']:.0%}, top-5 {worst['top5']:.0%}"
            )
        if record.llamacpp_missed:
            lines[0] += f"; llama.cpp was not compared ({record.llamacpp_missed})"
        lines += [f"  {failure}" for failure in record.failures[:SHOWN_FAILURES]]
        if (rest := len(record.failures) - SHOWN_FAILURES) > 0:
            lines.append(f"  … and {rest} more in {self.result}")
        if record.precision == "fp16" and any(NOT_FINITE in failure for failure in record.failures):
            lines.append("  fp16 ends at 65504, and a number is beyond: export it with --precision fp32")
        if record.unstable:
            lines.append(
                f"  {len(record.unstable)} of {record.outputs} outputs are unstable in fp16 (rounding alone "
                "moves PyTorch as far): only PyTorch's own error limits them"
            )
        lines += shifts.lines(record)
        lines += [f"  not crossed: {one}" for one in record.missed]
        if record.localized:
            lines.append(f"  first divergence: {record.localized}")
        return "\n".join(lines)


def check(
    path: Path,
    *,
    localize: bool = False,
    force: bool = False,
    reference: Path | None = None,
    devices: Devices = CPU,
) -> Comparison:
    """Runs an artefact beside PyTorch and writes the result; what has passed there is not repeated.

    Args:
        path: graph (.onnx) or engine (.plan).
        localize: name the first sublayer that diverges, even if all passes (a failure always is localized).
        force: check again what has passed.
        reference: the Hugging Face folder to compare with; by default the checkpoint that the artefact
            belongs to. A graph that optimum exported brings no checkpoint along, and needs it.
        devices: that a graph and PyTorch run on. What passes on one says nothing of the other's kernels.

    Raises:
        UserError: no such artefact, this machine cannot run it, or transformers cannot load its checkpoint.
    """
    sidecar = store.sidecar(path)
    if sidecar.artefact == "merged":
        raise UserError(f"{path} is a merged graph; check the variants that it was merged from")
    result, folder = store.result_of(path, "check", devices.graphs), _reference_folder(path, reference)
    if not (localize or force) and store.check_passed(path, sidecar.sha256, devices.graphs):
        record = records.read(CheckRecord, result)
        if reference is None or record.checkpoint == store.relative(folder, result):
            log.info("%s: already checked, %s", path, result)
            return Comparison(path, result, record, fresh=False)
    files = _files(path, folder, result)
    record, outputs = _examine(path, folder, localize, devices)
    for file in files:
        if not store.weights.is_same(file, place := store.resolved(file.file, result)):
            raise UserError(f"{place} was written to while {path} was checked; check it again")
    record = record.replaced(weights=sidecar.weights, files=files)
    _save_outputs(outputs, result.with_suffix(".run.json"))
    store.write_json(result, record.plain())
    return Comparison(path, result, record, fresh=True)


def _files(path: Path, folder: Path, result: Path) -> tuple[FileState, ...]:
    """All that is compared beside the artefact itself, every byte of it, by paths from the result.

    Raises:
        UserError: a file is not what the hub gave, or what `export --verify` found.
    """
    if path.suffix == ".onnx":
        graphfile.load(path)  # refused before anything is said or run
    reference = weight_files.weight_files(folder)
    own = [*(store.weight_paths(path) if path.suffix == ".onnx" else []), *store.overlays(path)]
    paths = {file.resolve(): file for file in (*own, *reference, folder / "config.json")}
    states = {file: store.weights.state(file, full=True) for file in paths.values()}
    identity.refuse_other_sums(folder, states.values())
    return tuple(state.replaced(file=store.relative(file, result)) for file, state in states.items())


def _reference_folder(path: Path, reference: Path | None) -> Path:
    """The checkpoint to compare with."""
    folder = reference or store.checkpoint_folder(path)
    if not any(folder.glob("*.safetensors")):
        command = f"pipeline check {shlex.quote(str(path))} --reference FOLDER"
        raise UserError(f"{folder} holds no safetensors to compare with; run `{command}` with its checkpoint")
    return folder


# ---- running and comparing ------------------------------------------------------------------------------


def _examine(path: Path, folder: Path, localize: bool, devices: Devices) -> tuple[CheckRecord, RunResults]:
    """Plays every feed on both sides → (what the result says, the outputs of both)."""
    start, sidecar = time.perf_counter(), store.sidecar(path)
    variant, result = store.variant(path, quick=True), store.result_of(path, "check", devices.graphs)
    feeds, crossed, source = _feeds(folder, SEED, room(sidecar))
    log.info("%s: comparing with PyTorch on %d feeds", path, len(feeds))
    compared = beside_pytorch.compare(path, folder, feeds, devices)
    verdict, beside, where = judge(compared.agreements), None, None
    if _is_the_files(variant, folder) and folder == store.checkpoint_folder(path):
        beside = beside_llamacpp.compare(folder, SEED, devices.torch)
    if localize or not verdict.passed:
        where = localizing.place(path, folder, feeds, compared.agreements, devices)
    record = CheckRecord(
        **records.variant_fields(variant),
        artefact=store.relative(path, result),
        sha256=store.sha256(path),
        passed=verdict.passed and not beside_llamacpp.failures(beside),
        failures=(*verdict.failures, *beside_llamacpp.failures(beside)),
        **beside_llamacpp.fields(beside),
        healed=_proof(path, variant),
        shifts=compared.shifts,
        unstable=verdict.unstable,
        outputs=verdict.outputs,
        worst=verdict.worst,
        localized=where,
        limits=LIMITS[variant.precision],
        checkpoint=store.relative(folder, result),
        references=("fp32", "fp16") if compared.noise else ("fp32",),
        tokens=source,
        crossed=crossed.crossed,
        missed=crossed.missed,
        feeds=compared.agreements,
        noise=compared.noise,
        versions=store.versions(*_PACKAGES, *_RUNTIMES[path.suffix]),
        device=machine.device(path, devices.graphs),
        provider=store.provider_of(path, devices.graphs),
        torch_device=devices.torch,
        seconds=round(time.perf_counter() - start, 1),
    )
    return record, compared.outputs


def _is_the_files(variant: Variant, folder: Path) -> bool:
    """Whether a variant is all that the checkpoint's own files hold, or what config.json leaves of it."""
    own = drop_lists.skip_set(read_config(folder), folder / "config.json")
    return variant.skip == own and not (variant.adapter or variant.compensation or variant.quantisation)


def _proof(path: Path, variant: Variant) -> HealedProof | None:
    """The reference reads the tensors that `export --adapter` wrote; whether those are the adapter's.

    Raises:
        UserError: they are not.
    """
    if variant.adapter is None:
        return None
    tensors = store.overlays(path)[-1]
    own = open_checkpoint(store.checkpoint_folder(path))
    proof = adapters.prove(own, variant, variant.adapter, tensors)
    if proof is None:
        log.warning("%s: its adapter is gone, so nothing proves that %s is merged from it", path, tensors)
    return proof


def _feeds(folder: Path, seed: int, ranges: Ranges | None) -> tuple[list[Feed], Crossings, str]:
    """(all feeds, those of them that cross a window or a switch, where their tokens are from)."""
    config = read_config(folder)
    lengths = tuple(dict.fromkeys(scripted.longest_prompt(config, n) for n in scripted.LENGTHS))
    tokens, source = texts.sequences(folder, max(lengths) + scripted.STEPS, 2 * len(lengths), seed)
    extra = crossings(config, lambda length: texts.sequences(folder, length, 1, seed + 1)[0][0], ranges)
    *single, left, right = scripted.feeds(tokens, lengths)
    return [*single, *extra.feeds, left, right], extra, source


# ---- what is written ------------------------------------------------------------------------------------


def _save_outputs(outputs: RunResults, path: Path) -> None:
    """Writes Polygraphy's JSON, which `polygraphy inspect data` opens.

    It is kept small: of each feed only the last row's logits at the last prefill position and the last
    decode step.
    """
    small = RunResults()
    for name, iterations in outputs.items():
        kept = [IterationResult(_last_logits(it), runtime=it.runtime, runner_name=name) for it in iterations]
        small.append((name, kept))
    with store.atomic(path) as temporary, G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        small.save(str(temporary))


def _last_logits(iteration: IterationResult) -> dict[str, Array]:
    return {
        name: np.ascontiguousarray(iteration[name][-1:, -1]) for name in ("prefill/logits", "decode/logits")
    }
