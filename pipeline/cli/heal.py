"""The command that heals a variant."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from pipeline import store
from pipeline.cli import arguments, extras, prerequisites
from pipeline.cli.app import CHOOSE, DeviceMemory, Json, ProviderOption, app, show_result
from pipeline.cli.text_options import Dataset, Texts, text_input
from pipeline.store import records
from pipeline.store.records import AdapterRecord, HealSettings
from pipeline.types import UserError


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
    lr: Annotated[float, typer.Option(help="Peak learning rate.", callback=arguments.above_zero)] = 3e-4,
    targets: Annotated[str, typer.Option(help="mlp, attn, or modules' names: mlp,o_proj.")] = "mlp",
    quantize: Annotated[str | None, typer.Option(help="4bit: QLoRA, on a GPU.")] = None,
    kl: Annotated[bool, typer.Option("--kl", help="Also learn the whole model's distribution.")] = False,
    aux: Annotated[
        bool, typer.Option("--aux", help="Also mend the stream at the cut (Gromov et al., equation 8).")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the first matrices, dropout and order.")] = 0,
    provider: ProviderOption = "cpu",
    device_memory: DeviceMemory = None,
    precision: Annotated[str, typer.Option(help="Of the model that is trained on: fp32 or bf16.")] = "fp32",
    force: Annotated[bool, typer.Option("--force", help="Train again what is there and matches.")] = False,
    as_json: Json = False,
) -> None:
    """Trains a LoRA adapter that heals a variant; `pipeline export … --adapter NAME` merges it.

    A run that was stopped goes on where it was.
    Example: `pipeline heal graphs/*/block22-29.fp32.onnx --steps 60`
    """
    extras.needs("heal", "pipeline heal")
    if quantize and prerequisites.has_gpu():  # without a GPU the stage says that it needs one
        extras.needs("qlora", "pipeline heal --quantize")
    from pipeline.calib import adapters
    from pipeline.calib import heal as stage

    if kl and aux:
        raise UserError("--kl and --aux exclude each other")
    settings = HealSettings(
        loss="kl" if kl else "aux" if aux else "ce",
        steps=steps,
        batch=batch,
        length=length,
        rank=rank,
        alpha=rank,
        lr=lr,
        targets=tuple(targets.split(",")),
        quantize=quantize,
        precision=precision,
        seed=seed,
    )
    device = arguments.torch_device(provider, device_memory)
    text = text_input(texts, dataset, "pipeline heal")
    graphs = [graph for graph in graphs if not store.variant(graph).adapter] or graphs
    if quantised := next((graph for graph in graphs if store.variant(graph).quantisation), None):
        twin = replace(store.variant(quantised), quantisation=None).stem
        raise UserError(
            f"the weights of {quantised} are quantised, and adapters change weights; heal {twin}.onnx"
        )
    places = [stage.heal(graph, settings, text, name, force, device) for graph in graphs]
    healed = {place: records.read(AdapterRecord, place / adapters.RECORD) for place in places}
    show_result(
        [{"path": str(place), **record.plain()} for place, record in healed.items()],
        as_json,
        "\n".join(f"{place}  {_healing_text(record)}" for place, record in healed.items()),
    )


def _healing_text(record: AdapterRecord) -> str:
    losses, share = record.held_out_loss, record.healed_share
    words = f"held-out loss {losses.before:.3f} → {losses.after:.3f} (whole model {losses.base:.3f})"
    return words + ("" if share is None else f": {share:.0%} of the damage healed")
