"""Which engines run a variant, by which command and with which limits. Reads no weights.

`ship` refuses what is refused here, in the same words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.models.quantisation.names import requested
from pipeline.ship import outline, pruned
from pipeline.ship.gguf import refusals
from pipeline.ship.hf import forms
from pipeline.types import UserError, precision_name

_FOLDERS = "transformers, vLLM, SGLang, TensorRT-LLM, mlx-lm"


@dataclass(frozen=True, slots=True)
class EngineUse:
    """What one engine does with a variant.

    Attributes:
        name: of the engine.
        runs: whether it runs the variant.
        limits: why it does not; else what it needs or lacks.
        prepare: the command that writes the variant in its form; empty where it takes the graph. GRAPH stands
            for the graph's path.
        run: the command that runs what was written.
    """

    name: str
    runs: bool
    limits: str = ""
    prepare: str = ""
    run: str = ""

    def plain(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {name: getattr(self, name) for name in self.__slots__}


def of_graph(graph: Path) -> tuple[EngineUse, ...]:
    """The engines for a graph of one variant: this project's own first.

    Raises:
        UserError: a file is damaged.
    """
    record = store.graph_sidecar(graph)
    fp16 = precision_name("fp16", record.quantisation)
    half = "" if record.precision == "fp16" else f"in fp32; export --precision {fp16} for an fp16 engine"
    ours = [
        EngineUse("ONNX Runtime", True, run="pipeline generate GRAPH PROMPT"),
        EngineUse("TensorRT", True, half, "pipeline build-engine GRAPH", "pipeline generate PLAN PROMPT"),
    ]
    elsewhere = ("llama.cpp", _FOLDERS)
    if record.max_tokens is not None:
        reason = "its cache is static; the usual graph is shipped"
        return (*ours, *(EngineUse(one, False, reason) for one in ("Triton", *elsewhere)))
    ours.append(EngineUse("Triton", True, "", "pipeline ship GRAPH --to triton DIR", "pipeline serve DIR"))
    if record.contract != "authored":
        return (*ours, *(EngineUse(one, False, pruned.EXPORTED_ELSEWHERE) for one in elsewhere))
    llamacpp = _llamacpp(graph, record.precision_name)
    if record.quantisation:
        return (*ours, llamacpp, EngineUse(_FOLDERS, False, pruned.QUANTISED))
    return (*ours, llamacpp, *_of_folders(graph))


def _llamacpp(graph: Path, name: str) -> EngineUse:
    """Of a graph whose precision has that name."""
    (precision,) = requested(name)
    variant = outline.of_graph(graph)
    places = (*variant.maps, *variant.constants)
    if reason := refusals.refusal(variant.config, variant.skip, places, precision):
        return EngineUse("llama.cpp", False, reason)
    limits = "as its architecture deci" if refusals.is_deci(variant.skip, places) else ""
    return EngineUse(
        "llama.cpp", True, limits, "pipeline ship GRAPH --to gguf FILE.gguf", "llama-cli -m FILE.gguf"
    )


def _of_folders(graph: Path) -> list[EngineUse]:
    """Engines that load Hugging Face folders."""
    verdict = forms.verdict(outline.of_graph(graph))
    if verdict.refusal:
        return [EngineUse(_FOLDERS, False, verdict.refusal)]
    ship = f"pipeline ship GRAPH --to hf DIR{' --force' if verdict.unless_forced else ''}"
    return [
        EngineUse(
            one.name,
            one.loads,
            one.limits,
            ship if one.loads else "",
            one.command.format(folder="DIR") if one.loads else "",
        )
        for one in verdict.engines
    ]


def lines(engines: Sequence[EngineUse]) -> list[str]:
    """For a person: each command that writes a form, and the engines that run it; then those that do not."""
    text, last = [], None
    for engine in engines:
        if engine.runs:
            prepare = engine.prepare if engine.prepare != last else ""
            last = engine.prepare
            limits = f" ({engine.limits})" if engine.limits else ""
            text.append(f"{prepare or '':<40} {engine.name}: {engine.run}{limits}")
    without = [f"{engine.name} ({engine.limits})" for engine in engines if not engine.runs]
    return [*text, *([f"not in {'; '.join(without)}"] if without else [])]


def of_artefact(path: Path) -> tuple[EngineUse, ...]:
    """The engines for the variant of a graph, or of the graph that an engine was built from.

    Returns:
        Nothing where that graph is gone.
    """
    sidecar = store.sidecar(path, quick=True)
    graph = path
    if isinstance(sidecar, store.records.EngineRecord):
        graph = store.checkpoint_folder(path) / sidecar.graph.file
    try:
        return of_graph(graph)
    except UserError:
        if graph == path:
            raise
        return ()
