"""Commands that write artefacts: graphs and engines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline import arguments, chains, store
from pipeline.cli.app import Json, app, show_result
from pipeline.types import UserError


@app.command()
def export(
    model: Annotated[
        str | None, typer.Argument(help="HF id, local folder, .gguf file, `demo`, or a model under graphs/.")
    ] = None,
    skip: Annotated[
        str | None,
        typer.Option(help="attn, mlp or block with --frac, --count or --layers; or a whole skip set: attn20-28+mlp25-29."),
    ] = None,
    frac: Annotated[float | None, typer.Option(help="Fraction of the layers: ceil(frac · L) of them.")] = None,
    count: Annotated[int | None, typer.Option(help="Number of layers.")] = None,
    layers: Annotated[str | None, typer.Option(help="The layers themselves: 3,7,20-29.")] = None,
    select: Annotated[
        str | None, typer.Option(help="Rule that picks them: last (default), last-but-final, angular, cosine, joint, random.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of rules that draw.")] = 0,
    adapter: Annotated[
        str | None, typer.Option(help="Merge what `pipeline heal` trained for this variant, by its --name.")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32 (CPU) or fp16 (engines).")] = "fp32",
    head: Annotated[str, typer.Option(help="gather: logits where asked; all: [B, S, V], which optimum loads.")] = "gather",
    from_onnx: Annotated[
        Path | None, typer.Option(help="Folder that `optimum-cli export onnx` made, instead of MODEL.")
    ] = None,
    in_place: Annotated[bool, typer.Option("--in-place", help="Write the graphs beside a local checkpoint.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Hash the weights' contents into source.json.")] = False,
    as_json: Json = False,
) -> None:
    """Writes the base graph where it is missing, then the variant; prints its path.

    Example: `pipeline export demo --skip mlp --frac 0.25`
    """
    from pipeline import checkpoint, selectors, types
    from pipeline import export as stage
    from pipeline import skip as surgery

    if precision not in types.PRECISIONS or head not in ("gather", "all"):
        raise UserError(f"--precision is fp32 or fp16 and --head is gather or all, not {precision} and {head}")
    if from_onnx:
        if model or in_place:
            raise UserError("--from-onnx names the model already; leave MODEL and --in-place out")
        base = stage.export_from_onnx(from_onnx)
    else:
        found = checkpoint.resolve(arguments.model(model), in_place)
        told = selectors.Statistics(found.folder)
        chosen = selectors.skip_set(skip, frac, count, layers, select, stage.num_layers(found.config), told, seed)
        base = stage.export_base(found, "fp16" if precision == "fp16" else "fp32")
        if verify:
            checkpoint.verify(found)
    if from_onnx:
        told = selectors.Statistics(base.parent)
        chosen = selectors.skip_set(skip, frac, count, layers, select, store.read_sidecar(base)["num_layers"], told, seed)
    path = surgery.cut(base, chosen)
    if adapter:
        path = chains.healed(path, adapter)
    if head == "all":
        path = surgery.cut_all_logits(path)
    show_result({"path": str(path), **store.read_sidecar(path)}, as_json, str(path))


@app.command()
def merge(graphs: Annotated[list[Path], typer.Argument(help="Graphs of one base.")], as_json: Json = False) -> None:
    """Merges variants of one base into one graph that computes what they share once.

    Example: `pipeline merge graphs/*/base.fp32.onnx graphs/*/mlp22-29.fp32.onnx`
    """
    from pipeline import merge as stage

    path = stage.merge(graphs)
    show_result({"path": str(path), **store.read_sidecar(path)}, as_json, str(path))


@app.command("build-engine")
def build_engine(
    graphs: Annotated[list[Path] | None, typer.Argument(help="Graphs; by default all of the model's.")] = None,
    backend: Annotated[str, typer.Option(help="tensorrt-rtx (builds on a CPU) or tensorrt.")] = "tensorrt-rtx",
    target: Annotated[
        list[str] | None, typer.Option(help="sm75, sm80, sm86, sm89, sm120 …; repeat for several in one plan.")
    ] = None,
    batch: Annotated[str, typer.Option(help="min,opt,max")] = "1,1,8",
    length: Annotated[str, typer.Option(help="New tokens: min,opt,max")] = "1,100,2048",
    past: Annotated[str, typer.Option(help="Cached tokens: min,opt,max")] = "0,100,2048",
    strip_weights: Annotated[bool, typer.Option("--strip-weights", help="Leave the weights out; refit at load (GPU).")] = False,
    together: Annotated[
        bool, typer.Option("--together", help="Merge the graphs: one engine, one logits output a variant.")
    ] = False,
    keep_precision: Annotated[bool, typer.Option("--keep-precision", help="Build fp32 graphs as they are.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Build again what is there and matches.")] = False,
    as_json: Json = False,
) -> None:
    """Builds TensorRT engines; an fp32 graph's fp16 twin is cut first.

    Example: `pipeline build-engine graphs/*/attn19-28.fp16.onnx --target sm80`
    """
    from pipeline import build as stage
    from pipeline.backends import tensorrt

    tensorrt.library(backend)  # no twin is cut for a backend that is not there
    ranges: Any = {
        "batch": arguments.triple(batch, "--batch"),
        "length": arguments.triple(length, "--length"),
        "past": arguments.triple(past, "--past"),
    }
    taken = arguments.artefacts(graphs)
    twins = taken if keep_precision else list(dict.fromkeys(chains.fp16_twin(path) for path in taken))
    if together:
        twins = [chains.merged(twins, unchecked=True)]  # a built engine is checked on its own, on a GPU
    flags: Any = {"strip_weights": strip_weights, "keep_precision": keep_precision, "force": force}
    built = []
    for path in twins:
        with arguments.busy(f"building {path}"):
            built.append(stage.build(path, backend=backend, targets=tuple(target or ()), **flags, **ranges))
    show_result([{"path": str(p), **store.read_sidecar(p)} for p in built], as_json, "\n".join(str(p) for p in built))
