"""Commands that turn graphs into engines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import arguments, extras, prerequisites
from pipeline.cli.app import ENGINES, Json, app, artefact_json, show_result

BACKEND_EXTRAS = {"tensorrt-rtx": "rtx", "tensorrt": "tensorrt"}


@app.command("build-engine", rich_help_panel=ENGINES)
def build_engine(
    graphs: Annotated[
        list[Path] | None, typer.Argument(help="Graphs; by default all of the model's.")
    ] = None,
    backend: Annotated[
        str, typer.Option(help="tensorrt-rtx (builds on a CPU) or tensorrt.")
    ] = "tensorrt-rtx",
    target: Annotated[
        list[str] | None,
        typer.Option(help="sm75, sm80, sm86, sm89, sm120 …; repeat for several in one plan."),
    ] = None,
    batch: Annotated[str, typer.Option(help="min,opt,max")] = "1,1,8",
    length: Annotated[str, typer.Option(help="New tokens: min,opt,max")] = "1,100,2048",
    past: Annotated[str, typer.Option(help="Cached tokens: min,opt,max")] = "0,100,2048",
    strip_weights: Annotated[
        bool, typer.Option("--strip-weights", help="Leave the weights out; refit at load (GPU).")
    ] = False,
    together: Annotated[
        bool, typer.Option("--together", help="Merge the graphs: one engine, one logits output a variant.")
    ] = False,
    keep_precision: Annotated[
        bool, typer.Option("--keep-precision", help="Build fp32 graphs as they are.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Build again what is there and matches.")] = False,
    as_json: Json = False,
) -> None:
    """Builds TensorRT engines; an fp32 graph's fp16 twin is cut first.

    With TensorRT-RTX it says what memory and disk it needs, the weights once and about twice, and does not
    begin where they lack.

    Example: `pipeline build-engine graphs/*/attn19-28.fp16.onnx --target sm80`
    """
    if backend in BACKEND_EXTRAS:
        extras.needs(BACKEND_EXTRAS[backend], f"pipeline build-engine --backend {backend}")
    from pipeline.engines import build as stage
    from pipeline.engines.settings import BuildSettings
    from pipeline.runtime import tensorrt_library

    tensorrt_library.library(backend)  # refuses an unknown backend, or one that does not load
    settings = BuildSettings(
        backend=backend,
        targets=tuple(target or ()),
        batch=arguments.triple(batch, "--batch"),
        length=arguments.triple(length, "--length"),
        past=arguments.triple(past, "--past"),
        strip_weights=strip_weights,
        keep_precision=keep_precision,
        force=force,
    )
    inputs = arguments.artefacts(graphs)
    if not keep_precision:
        inputs = list(dict.fromkeys(prerequisites.fp16_twin(path) for path in inputs))
    if together:
        # The engine is checked on its own, on a GPU.
        inputs = [prerequisites.merged(inputs, unchecked=True)]
    engines = []
    for path in inputs:
        with arguments.busy(f"building {path}"):
            engines.append(stage.build(path, settings))
    show_result([artefact_json(path) for path in engines], as_json, "\n".join(map(str, engines)))
