"""Stage: a graph → a TensorRT engine. Precision comes with the graph; weights are read where they lie."""

from __future__ import annotations

import logging
import resource
import time
from pathlib import Path
from typing import Any

from pipeline import graphfile, lint, store
from pipeline.backends import tensorrt
from pipeline.types import UserError

log = logging.getLogger(__name__)
Range = tuple[int, int, int]

MAX_WANTED = 128
"""K at most: positions whose logits an engine gives at once. Every one costs V numbers of activation memory."""
_NO_RTX = {"sm70", "sm90", "sm100", "sm103"}


def build(
    graph: Path,
    *,
    backend: str = "tensorrt-rtx",
    targets: tuple[str, ...] = (),
    batch: Range = (1, 1, 8),
    length: Range = (1, 100, 2048),
    past: Range = (0, 100, 2048),
    strip_weights: bool = False,
    keep_precision: bool = False,
) -> Path:
    """Writes engines/<model>/<variant>/<backend>-<targets>-<precision>.plan and its sidecar, or finds them there.

    Args:
        targets: 'sm80', …; by default the GPU here, else sm80. TensorRT proper builds for the GPU here only.
        batch, length, past: min, opt, max of B, of S in prefill, and of P.
        strip_weights: leave the weights out of the plan; they are put back from the graph when it is loaded.
        keep_precision: build an fp32 graph as it is, its attention marked decomposable.

    Raises:
        UserError: the graph is not for TensorRT, the backend is missing, or parser or builder fail. No plan is left then.
    """
    record = store.read_sidecar(graph)
    variant = store.variant_of(record)
    if variant.precision != "fp16" and not keep_precision:
        raise UserError(f"{graph} is {variant.precision}; engines are built from fp16 graphs (or pass --keep-precision)")
    builder = tensorrt.Builder(backend)
    chosen = _targets(builder, targets)
    if strip_weights and tensorrt.gpu_target() is None:
        raise UserError(f"--strip-weights needs a GPU: {backend} cannot strip a plan on a CPU; build the whole plan here")
    path = store.engine_path(variant.model, variant.name, backend, "+".join(chosen), variant.precision)
    wanted = {
        **store.variant_record(variant),
        "backend": backend,
        "backend_version": builder.version,
        "targets": list(chosen),
        "ranges": {"batch": list(batch), "length": list(length), "past": list(past)},
        "stripped": strip_weights,
        "folder": str(graph.parent),
        "graph": {"file": graph.name, "sha256": record["sha256"]},
        "weights": record["weights"],
    }
    with store.lock(path.parent):
        store.sweep_temporaries(path.parent)
        if store.is_current(path, wanted):
            log.info("%s is there and matches; nothing to do", path)
            return path
        lint.require(graphfile.load(graph), graph)
        log.info("building %s from %s", path, graph)
        _write(builder, graph, path, wanted, keep_precision)
    return path


def _targets(builder: tensorrt.Builder, targets: tuple[str, ...]) -> tuple[str, ...]:
    """The targets to build for, checked against what the backend can do."""
    here = tensorrt.gpu_target()
    if builder.backend == "tensorrt":
        if here is None:
            raise UserError("TensorRT builds on and for an NVIDIA GPU, and none is seen here; use --backend tensorrt-rtx")
        if targets and targets != (here,):
            raise UserError(f"TensorRT builds for the GPU it runs on ({here}); leave --target out")
        return (here,)
    known = builder.targets()
    chosen = tuple(dict.fromkeys(part.lower() for target in targets for part in target.split(",")))
    for target in chosen:
        if target in _NO_RTX:
            raise UserError(f"TensorRT-RTX has no code for {target} (it is for RTX GPUs); use --backend tensorrt on that GPU")
        if target not in known:
            raise UserError(f"no target {target!r}; choose from {', '.join(known)}")
    if "sm75" in chosen and len(chosen) > 1:
        raise UserError("sm75 goes into a plan of its own: in one with newer targets it sets the code for all of them")
    return chosen or ((here,) if here in known and here is not None else ("sm80",))


def profiles(
    inputs: dict[str, tensorrt.Shape], batch: Range, length: Range, past: Range, context: int
) -> list[tensorrt.Profile]:
    """One profile for prefill (S over `length`, P from 0) and, where there is a cache, one for decode (S = 1).

    Args:
        inputs: network inputs, -1 where dynamic.
        context: longest sequence of the model; lengths are cut to it.
    """
    longest = tuple(min(n, context) for n in length)
    cached = tuple(min(n, context - 1) for n in past)
    has_cache = any(name.startswith("past_key_values.") for name in inputs)
    plans: list[tuple[tuple[int, ...], ...]] = [
        (batch, longest, (0, 0, cached[2]), tuple(min(n, MAX_WANTED) for n in (1, 1, longest[2])))
    ]
    if has_cache and cached[2] > 0:
        plans.append((batch, (1, 1, 1), cached, (1, 1, 1)))
    made = []
    for b, s, p, k in plans:
        profile: tensorrt.Profile = {}
        for name, shape in inputs.items():
            at = [_shape(name, shape, b[j], s[j], p[j] if has_cache else 0, k[j]) for j in range(3)]
            profile[name] = (at[0], at[1], at[2])
        made.append(profile)
    return made


def _shape(name: str, shape: tensorrt.Shape, b: int, s: int, p: int, k: int) -> tensorrt.Shape:
    """The shape of one input at B = b, S = s, P = p, K = k."""
    if name.startswith("past_key_values."):
        sizes = {0: b, 2: p}
    else:
        sizes = {0: b, 1: {"attention_mask": s + p, "logits_positions": k}.get(name, s)}
    return tuple(sizes.get(axis, size) if size < 0 else size for axis, size in enumerate(shape))


def _write(builder: tensorrt.Builder, graph: Path, path: Path, wanted: dict[str, Any], keep_precision: bool) -> None:
    """Parses, builds, writes plan, sidecar and log; on failure the log alone."""
    config = store.read_json(graph.parent / "config.json")
    ranges = {name: tuple(values) for name, values in wanted["ranges"].items()}
    timing_cache = store.engines_dir(wanted["model"], "timing.cache") if builder.backend == "tensorrt" else None
    log_file = path.with_suffix(".log")
    started = time.monotonic()
    try:
        builder.parse(graph, decomposable=keep_precision and wanted["precision"] == "fp32")
        parsed = time.monotonic()
        made = profiles(builder.inputs(), **ranges, context=config.get("max_position_embeddings", 1 << 30))
        plan = builder.build(made, wanted["targets"], wanted["stripped"], timing_cache)
    except UserError as error:
        log_file.write_text("\n".join(builder.lines) + "\n")
        raise UserError(f"{error}; TensorRT's own log: {log_file}") from None
    done = time.monotonic()
    log_file.write_text("\n".join(builder.lines) + "\n")
    with store.atomic(path) as temporary:
        temporary.write_bytes(plan)
    figures = {
        "layers": builder.layers(),
        "num_layers": sum(builder.layers().values()),
        "parse_seconds": round(parsed - started, 3),
        "build_seconds": round(done - parsed, 3),
        "peak_resident_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    ran = tensorrt.gpu_target() is not None
    claim = "parsed and built" + ("" if ran else " on a machine without a GPU; not loaded, not run, numbers unproven")
    store.write_sidecar(path, {"artefact": "engine", **wanted, "profiles": made, "build": figures, "proven": claim})
