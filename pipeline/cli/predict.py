"""The command that says what a pass takes on a GPU, before there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline import store
from pipeline.cli import arguments
from pipeline.cli.app import MEASURE, Json, app, show_result


@app.command(rich_help_panel=MEASURE)
def predict(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL|CONFIG|ARTEFACT]",
            help="A model by any of its names, or a config.json (of an HF id that file alone is fetched); "
            "or a variant's graph or engine, which stands for --skip of that variant.",
        ),
    ] = None,
    gpu: Annotated[
        str,
        typer.Option(
            help="a100, h100, h200, l40s, rtx4090, …; several with commas. A name that is unknown lists all."
        ),
    ] = "a100",
    lengths: Annotated[
        str, typer.Option(help="Tokens of the prefill, and of the cache of a decoding step.")
    ] = "50,100",
    skip: Annotated[
        list[str] | None,
        typer.Option(
            help="attn, mlp, block, or a variant (attn24-31, mlp12-17~linear); repeat, or use commas. "
            "By default 10, 25 and 33 % of each kind."
        ),
    ] = None,
    frac: Annotated[
        float | None, typer.Option(help="With a kind: fraction of the layers, ceil(frac · L).")
    ] = None,
    count: Annotated[int | None, typer.Option(help="With a kind: how many layers.")] = None,
    layers: Annotated[str | None, typer.Option(help="With a kind: which, 3,7,20-29.")] = None,
    batch: Annotated[int, typer.Option(help="Sequences at once.")] = 1,
    launch_us: Annotated[
        float | None, typer.Option(help="µs that a kernel launch takes on your host; else the GPU table's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What 1 token and a decoding step take on a GPU, as an engine and in eager PyTorch: a prediction.

    An engine's time is its roofline: bytes over bandwidth, or FLOPs over FLOP/s. PyTorch's is that of its
    kernel launches, where they take longer. In fp16, of base and variants; it needs no weights and no GPU.
    Example: `pipeline predict meta-llama/Llama-2-7b-hf --gpu a100,rtx4090 --skip attn --skip mlp --frac 0.33`
    """
    from pipeline.calib.skip_options import SkipOptions
    from pipeline.evals import gpus
    from pipeline.evals.predict import candidates
    from pipeline.evals.predict import predict as stage
    from pipeline.evals.predict import table as times
    from pipeline.models import named_configs
    from pipeline.report import predicted

    cards = [gpus.find(name) for name in gpu.split(",")]
    settings = stage.PredictSettings(tuple(arguments.numbers(lengths, "--lengths")), batch, launch_us)
    name, own = _of_artefact(arguments.model(model))
    named = named_configs.find(name)
    texts = own + [text.strip() for option in skip or [] for text in option.split(",")]
    chosen = candidates.candidates(named, texts, SkipOptions(frac=frac, count=count, layers=layers))
    variants = [candidates.base(named), *chosen]
    predictions = [stage.predict(named, variants, card, settings) for card in cards]
    comparison = predicted.comparison(named, cards[0])
    if as_json:
        paper = comparison.plain() if comparison else None
        show_result({"predictions": [one.plain() for one in predictions], "paper": paper}, True)
        return
    for one in predictions:
        arguments.print_table(times.table(one))
    if comparison:
        arguments.print_table(predicted.table(comparison))


def _of_artefact(name: str) -> tuple[str, list[str]]:
    """(the model, the variant of it) that a graph's or an engine's path means; any other name is the model's.

    Args:
        name: what stands for the model; graphs/m/attn3.fp32.onnx, or engines/m/attn3/….plan.

    Returns:
        The model's folder, and the variant's name: none of a base, which is predicted anyhow.

    Raises:
        UserError: as `store.variant`.
    """
    path = Path(name)
    if path.suffix not in (".onnx", ".plan"):
        return name, []
    variant = store.variant(path, quick=True).name
    return str(store.checkpoint_folder(path)), [] if variant == "base" else [variant]
