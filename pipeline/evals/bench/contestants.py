"""What a measurement times: a graph or an engine, or PyTorch with the same sublayers left out.

Every contestant computes the same: the logits of the last token (optimum's graphs give those of all tokens,
they have no other form) and the cache that the next token needs, which stays where the runner keeps it. Feeds
are made before the clock starts.

Legend: B batch, S tokens of a sequence, N sequences, K wanted positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline import store
from pipeline.engines import opening
from pipeline.evals import passed
from pipeline.evals.bench.memory import TorchMemory
from pipeline.runtime.runner import Array
from pipeline.store import records
from pipeline.types import Provider, UserError, Variant

RunSequence = Callable[[int], Array]
"""Runs sequence k and returns its logits [B, K, V]."""
Start = Callable[[Array], RunSequence]
"""Tokens [N, B, S] → what runs them. For decode the first S − 1 tokens are cached."""

_HOW = "tokens as numpy arrays, the cache in the runner's own memory"

SETTLE = 0.01
"""Seconds that PyTorch's OpenMP threads spin on after a call (measured: 7.5 ms): the next sample waits."""


@dataclass(frozen=True)
class Contestant:
    """Something to time.

    Attributes:
        name: unique in the run.
        path: the artefact whose variant it is.
        kind: 'artefact' itself, or 'torch' or 'optimum' on the same variant.
        start: takes the tokens, and gives what is timed.
        how: how it is run, in words.
        provider: that it runs on, ONNX Runtime's or PyTorch's device.
        attention: its kernel, where that is fixed; None: it is measured, or not known.
        memory: of PyTorch on a GPU.
    """

    name: str
    path: Path
    variant: Variant
    kind: Literal["artefact", "torch", "optimum"]
    start: Start
    how: str
    provider: Provider = "cpu"
    attention: str | None = None
    memory: TorchMemory | None = None


def name_of(path: Path) -> str:
    """'attn22-29.fp32' of a graph, 'attn22-29/tensorrt-rtx-sm80-fp16' of an engine."""
    variant = store.variant(path, quick=True)
    return variant.stem if path.suffix == ".onnx" else f"{variant.file}/{path.stem}"


def base_of(path: Path) -> Path:
    """The base that an artefact is compared with, which lies where it does.

    Of a checkpoint whose files hold no base, because weights of dropped sublayers are gone, it is the variant
    there that leaves out least, and nothing that the artefact has.

    Raises:
        UserError: the base is missing, or the artefact is a merged graph, or a graph with a static cache.
    """
    if path.suffix == ".onnx":  # ONNX Runtime copies that cache in every step; an engine writes in place
        passed.refuse_static(path)
    if store.sidecar(path, quick=True).artefact == "merged":
        raise UserError(f"{path} is a merged graph; measure the variants that it was merged from")
    if path.suffix == ".onnx":
        precision = store.variant(path, quick=True).precision_name
        base, command = path.with_name(f"base.{precision}.onnx"), "export"
    else:
        base, command = path.parent.parent / "base" / path.name, "build-engine"
    if base.is_file():
        return base
    if largest := _largest_without_base(path):
        return largest
    raise UserError(
        f"{base} is missing: a variant is measured beside its base; make it with `pipeline {command}`"
    )


def plain_base_of(path: Path, base: Path) -> Path | None:
    """Where the base with the checkpoint's own weights would lie, of an artefact with quantised ones.

    Args:
        path: of the artefact.
        base: that it is compared with, as `base_of` finds it.
    """
    variant = store.variant(path, quick=True)
    if variant.quantisation is None:
        return None
    return base.with_name(base.name.replace(variant.precision_name, variant.precision))


def _largest_without_base(path: Path) -> Path | None:
    """What stands for the base of an artefact that was made without one; None where it was made with one."""
    variant, candidates = store.variant(path, quick=True), dict[tuple[int, str], Path]()
    for graph in store.checkpoint_folder(path).glob(f"*.{variant.precision_name}.onnx"):
        record = _record_if_valid(graph)
        if record is None or record.base or record.contract != "authored":
            continue
        skip, engine = record.skip_set, path.parent.parent / record.as_variant().file / path.name
        artefact = graph if path.suffix == ".onnx" else engine
        if skip and skip | variant.skip == variant.skip and artefact.is_file():
            candidates[len(skip.attention) + len(skip.mlp), skip.name] = artefact
    return candidates[min(candidates)] if candidates else None


def _record_if_valid(graph: Path) -> records.GraphRecord | None:
    """The sidecar of a variant's graph; None of a merged one, and where it is missing or damaged."""
    try:
        record = records.read(records.SIDECAR, store.sidecar_path(graph))
    except UserError:
        return None
    return record if isinstance(record, records.GraphRecord) else None


def with_bases(paths: list[Path]) -> list[Path]:
    """The artefacts of one model, each with its base before it.

    Raises:
        UserError: a base is missing, a graph is a merged one, or the artefacts are of several models.
    """
    both = [path for artefact in paths for path in (base_of(artefact), artefact)]
    models = {store.sidecar(path).model for path in both}
    if len(models) != 1:
        raise UserError(f"one model at a time: these are of {', '.join(sorted(models)) or 'none'}")
    return list(dict.fromkeys(both))


def line_up(
    paths: list[Path],
    *,
    compare: tuple[str, ...] = (),
    optimum_graphs: Mapping[Path, Path] | None = None,
    threads: int,
    decode: bool,
    provider: Provider = "cpu",
) -> list[Contestant]:
    """Everything that is timed, each loaded once.

    Args:
        paths: graphs and engines.
        compare: 'torch' and 'optimum' add the same variants under PyTorch eager and optimum's graph.
        optimum_graphs: artefact → optimum's graph of the same variant.
        threads: of each.
        decode: time one further token on a cache.
        provider: of ONNX Runtime, and PyTorch's device.
    """
    contestants = [of_artefact(path, threads, decode, provider) for path in paths]
    if "torch" in compare:
        contestants += [of_torch(path, threads, decode, provider) for path in paths]
    if "optimum" in compare:
        contestants += [
            of_optimum(path, graph, threads, decode, provider)
            for path, graph in (optimum_graphs or {}).items()
        ]
    return contestants


def of_artefact(path: Path, threads: int, decode: bool, provider: Provider = "cpu") -> Contestant:
    """A graph or an engine."""
    variant, start = store.variant(path, quick=True), _graph_start(path, threads, decode, provider)
    return Contestant(
        name_of(path),
        path,
        variant,
        "artefact",
        start,
        f"logits and cache; {_HOW}",
        provider,
    )


def of_optimum(path: Path, graph: Path, threads: int, decode: bool, provider: Provider = "cpu") -> Contestant:
    """Optimum's graph of the same variant as the artefact."""
    return Contestant(
        f"{name_of(path)} (optimum)",
        path,
        store.variant(path, quick=True),
        "optimum",
        _graph_start(graph, threads, decode, provider),
        f"{graph}: logits of all tokens and cache; {_HOW}",
        provider,
    )


def of_torch(path: Path, threads: int, decode: bool, provider: Provider = "cpu") -> Contestant:
    """PyTorch eager as Hugging Face runs it: use_cache=True, the LM head at the last token only.

    Its logits come to the host before a sample ends, and with them all that was queued on a GPU before.
    """
    import torch

    from pipeline.models.quantisation.modules import overlays_of
    from pipeline.models.reference import Reference

    torch.set_num_threads(threads)
    variant = store.variant(path, quick=True)
    folder, overlays = store.checkpoint_folder(path), overlays_of(path)
    memory = TorchMemory() if provider == "cuda" else None
    with memory.loading() if memory else nullcontext():
        model = Reference(folder, variant.skip, variant.precision, overlays, device=provider).model

    def start(tokens: Array) -> RunSequence:
        rows = [torch.from_numpy(np.ascontiguousarray(part)).to(model.device) for part in tokens]
        run = _torch_decode(model, rows) if decode else _torch_prefill(model, rows)
        if memory:
            memory.measure(run)
        return run

    how = "transformers, attn_implementation='eager', use_cache=True, logits_to_keep=1"
    kernel = f"{model.config._attn_implementation}: matmul, softmax, matmul"
    return Contestant(
        f"{name_of(path)} (torch)", path, variant, "torch", start, how, provider, kernel, memory
    )


def _graph_start(path: Path, threads: int, decode: bool, provider: Provider = "cpu") -> Start:
    """A graph or an engine, opened once.

    All sequences use one cache: an empty one, or to decode that of the first. What a cache holds changes no
    work, one prefill is enough, and a static one takes memory for N tokens.
    """
    runner = opening.open_runner(path, threads, provider)

    def start(tokens: Array) -> RunSequence:
        if decode:
            _, cache = runner.forward(tokens[0][:, :-1])
            passes = [runner.prepared(rows[:, -1:], cache) for rows in tokens]
        else:
            empty = runner.empty_cache(tokens.shape[1])
            passes = [runner.prepared(rows, empty) for rows in tokens]
        return lambda k: runner.step(passes[k])[0][""]

    return start


def _torch_prefill(model: Any, rows: list[Any]) -> RunSequence:
    import torch

    def run(k: int) -> Array:
        with torch.inference_mode():
            logits: Array = model(input_ids=rows[k], use_cache=True, logits_to_keep=1).logits.cpu().numpy()
        return logits

    return run


def _torch_decode(model: Any, rows: list[Any]) -> RunSequence:
    """One token on the first sequence's cache, which is cropped again by replacing its tensors (no copy).

    Positions and a whole mask are passed in: transformers would ask layer 0's cache for the length, and that
    attention may be left out.
    """
    import torch
    from transformers import DynamicCache

    from pipeline.models import caches

    batch, total = rows[0].shape
    position = torch.tensor([total - 1], device=model.device)
    cache, named = DynamicCache(), caches.argument(model)
    with torch.inference_mode():
        model(input_ids=rows[0][:, :-1], **{named: cache}, use_cache=True, logits_to_keep=1)
    layers: list[Any] = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
    cropped = [(layer, layer.keys, layer.values) for layer in layers]
    options = {
        "attention_mask": torch.zeros(batch, 1, 1, total, dtype=model.dtype, device=model.device),
        "position_ids": position.expand(batch, 1),
        "cache_position": position,
        named: cache,
        "use_cache": True,
        "logits_to_keep": 1,
    }

    def run(k: int) -> Array:
        for layer, keys, values in cropped:
            layer.keys, layer.values = keys, values
        with torch.inference_mode():
            logits: Array = model(input_ids=rows[k][:, -1:], **options).logits.cpu().numpy()
        return logits

    return run
