"""Stage: a graph → a TensorRT engine. Precision comes with the graph; weights are read where they lie.

Legend: B batch, S new tokens, P cached tokens, T = P + S, K positions whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

import logging
import resource
import time
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.engines import builder as builders
from pipeline.engines import lint
from pipeline.graphs import graphfile
from pipeline.runtime import tensorrt_library
from pipeline.runtime.tensorrt_library import Profile, Range, Shape
from pipeline.types import UserError

log = logging.getLogger(__name__)
_DATACENTRE = {"sm90", "sm100", "sm103"}


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
    force: bool = False,
) -> Path:
    """Writes engines/<model>/<variant>/<backend>-<targets>-<precision>.plan and its sidecar, or finds them there.

    Args:
        targets: 'sm80', …; by default the GPU here, else sm80. TensorRT proper builds for the GPU here only.
        batch, length, past: ranges of B, of S in prefill, and of P; cut to the model's longest context.
        strip_weights: leave the weights out of the plan; they are put back from the graph when it is loaded.
        keep_precision: build an fp32 graph as it is, its attention marked decomposable.
        force: build again what is there and matches.

    Raises:
        UserError: the graph is not for TensorRT, the backend is missing, or parser or builder fail. No plan is left then.
    """
    record = store.read_sidecar(graph)
    identity = _identity(graph, record, keep_precision)
    builder = builders.Builder(backend)
    chosen = _targets(builder, targets)
    if strip_weights and tensorrt_library.gpu_target() is None:
        raise UserError(
            f"--strip-weights needs a GPU: {backend} cannot strip a plan on a CPU; leave it out to build a whole plan"
        )
    wanted = {
        **identity,
        "backend": backend,
        "backend_version": builder.version,
        "targets": chosen,
        "ranges": _ranges(graph.parent, batch, length, past),
        "stripped": strip_weights,
    }
    precision = identity["precision"] + (".all" if identity["head"] == "all" else "")
    path = store.engine_path(identity["model"], identity["variant"], backend, "+".join(chosen), precision)
    if not force and store.is_current(path, wanted):
        log.info("%s is there and matches; nothing to do", path)
        return path
    decomposed = identity["precision"] == "fp32"  # there is no fused kernel for FP32 attention
    lint.require(graphfile.load(graph), graph, decomposed)
    with store.lock(path.parent):
        store.sweep_temporaries(path.parent)
        log.info("building %s from %s", path, graph)
        _write(builder, graph, path, wanted, decomposed)
    return path


def _identity(graph: Path, record: dict[str, Any], keep_precision: bool) -> dict[str, Any]:
    """What an engine's sidecar says of what it computes and where it came from.

    Raises:
        UserError: an engine is not built from such a graph.
    """
    if record.get("artefact") == "merged":  # one engine with one logits output a variant
        fields = {"variant": graph.name.removesuffix(f".{record['precision']}.onnx"), "adapter": None}
        fields |= {key: record[key] for key in ("model", "precision", "head", "variants")}
    elif record.get("artefact") == "graph":
        fields = store.variant_record(store.variant_of(record))
    else:
        raise UserError(f"{graph} is no graph (it is: {record.get('artefact')})")
    if fields["precision"] != "fp16" and not keep_precision:
        how = (
            "export it with --precision fp16"
            if record["contract"] == "authored"
            else "export it in fp16 with optimum"
        )
        raise UserError(
            f"{graph} is {fields['precision']}, and engines are built from fp16 graphs: {how}, or pass --keep-precision"
        )
    return {
        **fields,
        "folder": str(graph.parent),
        "graph": {"file": graph.name, "sha256": record["sha256"]},
        "weights": record["weights"],
        "tokenizer": record.get("tokenizer"),
    }


def _targets(builder: builders.Builder, targets: tuple[str, ...]) -> list[str]:
    """The targets to build for, ascending, checked against what the backend can do."""
    here = tensorrt_library.gpu_target()
    asked = {part.strip().lower() for target in targets for part in target.split(",")}
    if builder.backend == "tensorrt":
        if here is None:
            raise UserError(
                "TensorRT builds on and for an NVIDIA GPU, and none is seen here; use --backend tensorrt-rtx"
            )
        if asked - {here}:
            raise UserError(f"TensorRT builds for the GPU it runs on ({here}); leave --target out")
        return [here]
    known = builder.targets()
    chosen = asked or {here or "sm80"}
    for target in sorted(chosen - set(known)):
        if target in _DATACENTRE:
            raise UserError(
                f"TensorRT-RTX has no code for {target} (H100, H200, B200): use --backend tensorrt on that GPU"
            )
        raise UserError(f"TensorRT-RTX has no target {target!r}; choose from {', '.join(known)}")
    if "sm75" in chosen and len(chosen) > 1:
        raise UserError(
            "sm75 goes into a plan of its own: beside newer targets it would set the code for all of them"
        )
    return [target for target in known if target in chosen]


def _ranges(folder: Path, batch: Range, length: Range, past: Range) -> dict[str, list[int]]:
    """The ranges that are built, which is said where the model's context cuts them."""
    made = builders.ranges(folder, batch, length, past)
    if (made["length"], made["past"]) != (list(length), list(past)):
        context = max(made["length"][2], made["past"][2] + 1)  # one of them reaches it
        cut = (_comma(made["length"]), _comma(made["past"]))
        log.info("the model's context is %d tokens: building for --length %s --past %s", context, *cut)
    return made


def _comma(numbers: list[int]) -> str:
    return ",".join(map(str, numbers))


def profiles(inputs: dict[str, Shape], ranges: dict[str, list[int]]) -> list[Profile]:
    """One profile for prefill (S over its range, P from 0) and one for decode (S = 1, P over its range).

    T is P + S in both, also where no attention is left to read it. K is 1 in decode.

    Args:
        inputs: network inputs, -1 where dynamic.
        ranges: min, opt, max of B ("batch"), S ("length"), P ("past") and K ("wanted").
    """
    past = ranges["past"]
    made = []
    for length, cached, wanted in (
        (ranges["length"], [0, 0, past[2]], ranges["wanted"]),
        ([1, 1, 1], past, [1, 1, 1]),
    ):
        at = [
            {name: _shape(name, shape, *sizes) for name, shape in inputs.items()}
            for sizes in zip(ranges["batch"], length, cached, wanted, strict=True)
        ]
        made.append({name: (at[0][name], at[1][name], at[2][name]) for name in inputs})
    return made


def _shape(name: str, shape: Shape, b: int, s: int, p: int, k: int) -> Shape:
    """The shape of one input at B = b, S = s, P = p, K = k."""
    if name.startswith("past_key_values."):
        sizes = {0: b, 2: p}
    else:
        sizes = {0: b, 1: {"attention_mask": s + p, "logits_positions": k}.get(name, s)}
    return tuple(sizes[axis] if size < 0 else size for axis, size in enumerate(shape))


def _write(
    builder: builders.Builder, graph: Path, path: Path, wanted: dict[str, Any], decomposed: bool
) -> None:
    """Parses, builds, writes plan, sidecar and log; on failure the log alone."""
    timing_cache = (
        store.engines_dir(wanted["model"], "timing.cache") if builder.backend == "tensorrt" else None
    )
    log_file = path.with_suffix(".log")
    started = time.monotonic()
    try:
        builder.parse(graph, decomposed)
        parsed = time.monotonic()
        made = profiles(builder.inputs(), wanted["ranges"])
        plan = builder.build(made, wanted["targets"], wanted["stripped"], timing_cache)
    except UserError as error:
        raise UserError(f"{error}; TensorRT's own log: {log_file}") from None
    finally:
        with store.atomic(log_file) as temporary:
            temporary.write_text("\n".join(builder.lines) + "\n")
    done = time.monotonic()
    with store.atomic(path) as temporary:
        temporary.write_bytes(plan)
    layers = builder.layers()
    figures = {
        "layers": layers,
        "num_layers": sum(layers.values()),
        **builder.memory(),
        "parse_seconds": round(parsed - started, 3),
        "build_seconds": round(done - parsed, 3),
        "process_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    where = "on a CPU" if tensorrt_library.gpu_target() is None else "on a GPU"
    store.write_sidecar(
        path,
        {
            "artefact": "engine",
            **wanted,
            "profiles": made,
            "build": figures,
            "proven": f"parsed and built {where}; not run",
        },
    )
