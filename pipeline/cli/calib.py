"""Commands that learn from text which sublayers matter, and choose what to leave out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline import store
from pipeline.cli import arguments, prerequisites
from pipeline.cli.app import CHOOSE, Json, Model, app, show_result
from pipeline.types import UserError

NEARLY = 5
"""So many of what was nearly chosen are printed; --json has all."""

Texts = Annotated[
    list[Path] | None, typer.Option(help=".txt, or .jsonl with a column `text`; repeat for several.")
]
Dataset = Annotated[str | None, typer.Option(help="Of the hub, streamed: allenai/c4:en:validation.")]


@app.command(rich_help_panel=CHOOSE)
def calibrate(
    model: Model = None,
    texts: Texts = None,
    dataset: Dataset = None,
    samples: Annotated[int, typer.Option(help="Sequences.")] = 256,
    length: Annotated[int, typer.Option(help="Tokens of each.")] = 512,
    buckets: Annotated[int, typer.Option(help="Position buckets.")] = 4,
    runner: Annotated[str, typer.Option(help="torch, or a base graph.")] = "torch",
    force: Annotated[bool, typer.Option("--force", help="Measure again what is there and matches.")] = False,
    as_json: Json = False,
) -> None:
    """Measures how much each layer and sublayer changes the residual stream: cosine and angular distance.

    A run that was stopped goes on where it was. Example: `pipeline calibrate demo --samples 64 --length 256`
    """
    from pipeline.calib import calibrate as stage
    from pipeline.calib import similarity
    from pipeline.engines import taps
    from pipeline.models import checkpoint
    from pipeline.models.texts import TextInput

    found = checkpoint.resolve(arguments.model(model))
    source = TextInput(tuple(texts or ()), dataset)
    graph = None if runner == "torch" else Path(runner)
    settings = stage.CalibrationSettings(samples, length, buckets)
    path = stage.calibrate(found.folder, source, settings, graph, taps.graph_streams, force)
    if not as_json:
        arguments.print_table(similarity.table(found.model, similarity.of_checkpoint(found.folder)))
    show_result({"path": str(path), **store.read_json(path)}, as_json, str(path))


@app.command(rich_help_panel=CHOOSE)
def select(
    model: Model = None,
    kind: Annotated[
        str | None, typer.Option(help="attn, mlp or block (default); with a time also any (default).")
    ] = None,
    count: Annotated[int | None, typer.Option(help="How many.")] = None,
    frac: Annotated[
        float | None, typer.Option(help="Fraction of the layers: ceil(frac · L) of them.")
    ] = None,
    selector: Annotated[
        str, typer.Option("--select", help="The rule; each is a file in pipeline/selectors/.")
    ] = "last",
    seed: Annotated[int, typer.Option(help="Of rules that draw.")] = 0,
    texts: Texts = None,
    dataset: Dataset = None,
    samples: Annotated[int, typer.Option(help="Sequences that greedy measures losses on.")] = 32,
    length: Annotated[
        int | None, typer.Option(help="Tokens of each (256); with a time: of the text that is timed (100).")
    ] = None,
    tokens: Annotated[str, typer.Option(help="Where angular reads the distance: final or mean.")] = "final",
    speedup: Annotated[
        float | None, typer.Option(help="Instead of a count: so much faster than the whole model, 1.2.")
    ] = None,
    latency_ms: Annotated[
        float | None, typer.Option(help="Instead of a count: so many milliseconds for --length tokens.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Prints what a rule would leave out, and why: the statistic of each chosen and each nearly chosen sublayer.

    Example: `pipeline select demo --kind block --count 8 --select angular`
    """
    from pipeline.calib import selectors
    from pipeline.graphs.export import num_layers
    from pipeline.models import checkpoint
    from pipeline.models.texts import TextInput
    from pipeline.types import count_of

    if sum(value is not None for value in (count, frac, speedup, latency_ms)) != 1:
        raise UserError("pipeline select takes exactly one of --count, --frac, --speedup and --latency-ms")
    found = checkpoint.resolve(arguments.model(model))
    if speedup is not None or latency_ms is not None:
        _select_by_time(found.folder, kind or "any", speedup, latency_ms, length or 100, as_json)
        return
    kind = kind or "block"
    layers = num_layers(found.config)
    number = count if count is not None else count_of(frac or 0.0, layers)
    told = selectors.ModelStatistics(
        found.folder, TextInput(tuple(texts or ()), dataset), samples, length or 256, tokens
    )
    question = selectors.Question(kind, number, layers, told, seed)
    choice = selectors.choose(selector, question)
    record = {
        "skip": choice.skip.name, "attention": list(choice.skip.attention), "mlp": list(choice.skip.mlp), "select": selector,
        "kind": kind, "count": number, "statistic": choice.statistic, "note": choice.note, "chosen": choice.chosen, "stays": choice.stays,
    }  # fmt: skip
    lines = [choice.skip.name, *(text for text in (choice.statistic, choice.note) if text)]
    for verdict, part in (("goes", choice.chosen), ("stays", choice.stays[:NEARLY])):
        lines += [f"  {verdict:<5}  {name:<12} {value:.4f}" for name, value in part]
    show_result(record, as_json, "\n".join(lines))


def _select_by_time(
    folder: Path, kind: str, speedup: float | None, latency_ms: float | None, length: int, as_json: bool
) -> None:
    from dataclasses import asdict

    if latency_ms is not None and latency_ms <= 0:
        raise UserError(f"--latency-ms {latency_ms:g} is not above 0")
    rounds, reached, times = prerequisites.within_budget(folder, kind, speedup, latency_ms, length)
    last = rounds[-1]
    record = {
        "skip": last.skip.name, "attention": list(last.skip.attention), "mlp": list(last.skip.mlp), "kind": kind,
        "reached": reached, "speedup": last.measured, "length": length, "seconds": times.plain(),
        "rounds": [{**asdict(one), "skip": one.skip.name} for one in rounds],
    }  # fmt: skip
    lines = [
        last.skip.name,
        f"  a sublayer takes {times.attn * 1e3:.2f} ms (attn), {times.mlp * 1e3:.2f} ms (mlp) of {times.whole * 1e3:.1f}",
    ]
    for one in rounds:
        lines.append(
            f"  {one.skip.name}: predicted {one.predicted:.3f}x, measured {one.measured:.3f}x; Σ(1 - cosine) {one.damage:.3f}"
        )
    lines += (
        [] if reached else ["  what was asked was not reached; this is the nearest that was measured last"]
    )
    show_result(record, as_json, "\n".join(lines))


@app.command(rich_help_panel=CHOOSE)
def heal(
    graphs: Annotated[
        list[Path], typer.Argument(help="Variants' graphs; those that have an adapter are passed over.")
    ],
    name: Annotated[str, typer.Option(help="Of the adapter.")] = "heal",
    texts: Texts = None,
    dataset: Dataset = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 60,
    batch: Annotated[int, typer.Option(help="Sequences a step.")] = 4,
    length: Annotated[int, typer.Option(help="Tokens of each.")] = 256,
    rank: Annotated[int, typer.Option(help="Of the LoRA matrices; alpha is the same.")] = 64,
    lr: Annotated[float, typer.Option(help="Peak learning rate; cosine after a warm-up.")] = 3e-4,
    targets: Annotated[str, typer.Option(help="mlp, attn, or modules' names: mlp,o_proj.")] = "mlp",
    quantize: Annotated[str | None, typer.Option(help="4bit: QLoRA, on a GPU.")] = None,
    kl: Annotated[bool, typer.Option("--kl", help="Also learn the whole model's distribution.")] = False,
    aux: Annotated[
        bool, typer.Option("--aux", help="Also mend the stream at the cut (Gromov et al., equation 8).")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the first matrices, dropout and order.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Train again what is there and matches.")] = False,
    as_json: Json = False,
) -> None:
    """Trains a LoRA adapter that heals a variant; `pipeline export … --adapter NAME` merges it.

    A run that was stopped goes on where it was. Example: `pipeline heal graphs/*/block22-29.fp32.onnx --steps 60`
    """
    from pipeline.calib import adapters
    from pipeline.calib import heal as stage
    from pipeline.models.texts import TextInput
    from pipeline.store.records import HealSettings

    if kl and aux:
        raise UserError("--kl and --aux exclude each other")
    settings = HealSettings(
        loss="kl" if kl else "aux" if aux else "ce", steps=steps, batch=batch, length=length, rank=rank, alpha=rank, lr=lr,
        targets=tuple(targets.split(",")), quantize=quantize, seed=seed,
    )  # fmt: skip
    fresh = [graph for graph in graphs if not store.read_sidecar(graph).get("adapter")] or graphs
    places = [
        stage.heal(graph, settings, TextInput(tuple(texts or ()), dataset), name, force) for graph in fresh
    ]
    records = [{"path": str(place), **store.read_json(place / adapters.RECORD)} for place in places]
    show_result(records, as_json, "\n".join(f"{one['path']}  {_healed(one)}" for one in records))


def _healed(record: dict[str, Any]) -> str:
    losses, share = record["held_out_loss"], record["healed_share"]
    words = f"held-out loss {losses['before']:.3f} → {losses['after']:.3f} (whole model {losses['base']:.3f})"
    return words + ("" if share is None else f": {share:.0%} of the damage healed")
