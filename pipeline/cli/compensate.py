"""The command that puts something in the place of what a variant skips."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline import store
from pipeline.cli import arguments, timing
from pipeline.cli.app import CHOOSE, DeviceMemory, Json, ProviderOption, app, show_result
from pipeline.cli.text_options import Dataset, Texts, text_input
from pipeline.types import Devices, Provider, UserError

if TYPE_CHECKING:
    from pipeline.calib.compensation.compensate import Means
    from pipeline.models.checkpoint import Checkpoint
    from pipeline.models.texts import TextInput
    from pipeline.store.records import CompensationRecord, CompensationSettings

LENGTH = 100
"""Tokens of the prefill that is timed: the papers' longer one."""


@app.command(rich_help_panel=CHOOSE)
def compensate(
    graphs: Annotated[
        list[Path], typer.Argument(help="Variants' graphs; those that have a compensation are passed over.")
    ],
    form: Annotated[
        str,
        typer.Option("--with", help="bias, rank16 (any rank), linear, matrix, fold, fold+rank16, auto."),
    ] = "linear",
    texts: Texts = None,
    dataset: Dataset = None,
    samples: Annotated[int, typer.Option(help="Sequences that it is fitted on.")] = 48,
    length: Annotated[int, typer.Option(help="Tokens of each.")] = 256,
    refit: Annotated[
        bool, typer.Option("--refit", help="Fit later maps anew on what the variant computes, if better.")
    ] = False,
    budget_params: Annotated[
        int | None, typer.Option(help="With auto: numbers that the maps may hold.")
    ] = None,
    budget_ms: Annotated[
        float | None, typer.Option(help=f"With auto: milliseconds of a prefill of {LENGTH} tokens.")
    ] = None,
    moments: Annotated[
        Path | None, typer.Option(help="Folder of moments to use as they are; else calib/<model>/moments.")
    ] = None,
    memory: Annotated[int, typer.Option(help="MB that moments may take while they are gathered.")] = 4000,
    reference: Annotated[
        Path | None, typer.Option(help="Checkpoint of a graph that --from-onnx took over.")
    ] = None,
    timed: Annotated[bool, typer.Option("--time/--no-time", help="Time the result beside the rest.")] = True,
    provider: ProviderOption = "cpu",
    device_memory: DeviceMemory = None,
    force: Annotated[bool, typer.Option("--force", help="Fit again what is there and matches.")] = False,
    as_json: Json = False,
) -> None:
    """Puts a map, fitted in closed form on text, in the place of each sublayer that a variant skips.

    One pass of the whole model gives every form and every rank; it is kept in calib/<model>/moments. What
    has quantised weights is fitted on the model that holds them.
    Example: `pipeline compensate graphs/*/mlp12-17_25-26.fp32.onnx --with linear`
    """
    text = text_input(texts, dataset, "pipeline compensate")
    from pipeline.calib.compensation.compensate import Means
    from pipeline.store.records import CompensationSettings

    if samples < 2 or length < 2:
        raise UserError("--samples and --length must be at least 2")
    if memory < 1:
        raise UserError("--memory must be at least 1 MB")
    if (budget_params or 0) < 0 or (budget_ms is not None and not budget_ms > 0):
        raise UserError("--budget-params must be at least 0 and --budget-ms above 0")
    settings = CompensationSettings(form=form, samples=samples, length=length, refit=refit)
    is_timed = timed or budget_ms is not None
    graphs_on: Provider = arguments.provider(provider) if is_timed else "cpu"
    devices = Devices(graphs_on, arguments.torch_device(provider, device_memory))
    means = Means(
        memory=memory * 1_000_000,
        moments=moments,
        budget_params=budget_params,
        budget_ms=budget_ms,
        device=devices.torch,
    )
    bare = [graph for graph in dict.fromkeys(graphs) if not store.variant(graph).compensation] or graphs
    sources = {graph: _source(graph, form, reference) for graph in bare}  # refused before anything is fitted
    make = partial(fitted, means=means, force=force, provider=devices.graphs)
    results = [make(graph, source, settings, text) for graph, source in sources.items()]
    if timed:
        results = [one.timed(devices.graphs) for one in results]
    show_result([one.plain() for one in results], as_json, "\n".join(one.text() for one in results))


@dataclass(frozen=True, slots=True)
class Compensated:
    """A variant with something in the place of what it skips.

    Attributes:
        bare: the variant's graph.
        path: the compensated one.
        overlay: what it reads beside the checkpoint.
        record: how that was made, and what it brought back.
        milliseconds: of the base, of the variant and of the compensated one: medians of one interleaved run.
    """

    bare: Path
    path: Path
    overlay: Path
    record: CompensationRecord
    milliseconds: tuple[float, float, float] | None = None

    def timed(self, provider: Provider) -> Compensated:
        """The same, timed on a provider of ONNX Runtime."""
        with arguments.busy(f"timing {self.path}"):
            times = timing.milliseconds([self.bare, self.path], LENGTH, provider)
        base = next(ms for path, ms in times.items() if path not in (self.bare, self.path))
        return replace(self, milliseconds=(base, times[self.bare], times[self.path]))

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        names = ("base", "none", "compensated")
        times = dict(zip(names, self.milliseconds, strict=True)) if self.milliseconds else None
        return {
            "path": str(self.path),
            "overlay": str(self.overlay),
            "milliseconds": times,
            **self.record.plain(),
        }

    def text(self) -> str:
        """For a person; the last line is the path."""
        losses, share = self.record.losses, self.record.regained_share
        back = "" if share is None else f" ({share:.0%} of the damage back)"
        lines = [
            f"{self.record.variant} with {self.record.settings.form}",
            f"  loss        whole {losses.base:.3f}, without {losses.none:.3f}, "
            f"with {losses.compensated:.3f}{back}; held-out text",
            f"  parameters  {self.record.parameters:,} more than without",
        ]
        if self.milliseconds:
            base, none, compensated = self.milliseconds
            lines.append(
                f"  prefill     whole {base:.1f} ms, without {none:.1f}, with {compensated:.1f} "
                f"({LENGTH} tokens)"
            )
        notes = dict.fromkeys(one.note for one in self.record.maps if one.note)
        return "\n".join([*lines, *(f"  {note}" for note in notes), str(self.path)])


def _source(graph: Path, form: str, reference: Path | None) -> Checkpoint:
    """The whole model that a variant was cut from.

    Args:
        graph: the variant's.
        form: of the compensation.
        reference: the checkpoint, as it was named.

    Raises:
        UserError: the graph is of no bare variant, `reference` is another model, or the graph cannot read
            folded weights.
    """
    from pipeline.graphs import variants as surgery
    from pipeline.models import checkpoint

    base, record = surgery.base_of(graph), store.graph_sidecar(graph)
    if record.quantisation and form.startswith("fold"):
        raise UserError(
            f"the weights of {graph} are quantised, so that nothing can be folded into them; take --with "
            "bias, linear or a rank"
        )
    if record.contract == "authored":
        own = checkpoint.open_checkpoint(graph.parent)
        if reference and checkpoint.open_checkpoint(reference).contents != own.contents:
            raise UserError(f"{reference} holds other weights than {graph.parent}; leave --reference out")
        return own
    if reference is None:
        raise UserError(
            f"{graph} was exported elsewhere and brings no checkpoint along; name it: --reference FOLDER"
        )
    if form.startswith("fold"):
        raise UserError(
            f"{graph} was exported elsewhere and keeps its weights in another form, so that nothing can be "
            "folded into them; take --with bias, linear or a rank"
        )
    _prove_reference(base, reference)
    return checkpoint.open_checkpoint(reference)


def _prove_reference(base: Path, reference: Path) -> None:
    """Checks that a graph which was exported elsewhere computes what a checkpoint does.

    Raises:
        UserError: it does not: maps that were fitted there would be another model's.
    """
    from pipeline.evals.check import check as stage

    with arguments.busy(f"checking {base} first"):
        passed = stage.check(base, reference=reference).passed
    if not passed:
        raise UserError(
            f"{base} does not compute what {reference} does; name the checkpoint that it was exported from"
        )


def fitted(
    graph: Path,
    source: Checkpoint,
    settings: CompensationSettings,
    text: TextInput,
    *,
    means: Means,
    force: bool,
    provider: Provider,
) -> Compensated:
    """Fits, writes the overlay, and cuts the graph that reads it.

    Args:
        graph: the bare variant's.
        source: the whole model.
        settings: what is to stand in for what it skips.
        text: what text that is fitted on.
        means: with what; where and how it is timed is added here.
        force: fit again what is there and matches.
        provider: that --budget-ms is timed on.
    """
    from pipeline.calib.compensation import compensate as stage
    from pipeline.evals import machine
    from pipeline.graphs import variants as surgery

    base, variant = surgery.base_of(graph), store.variant(graph)

    def milliseconds(overlay: Path, chosen: str) -> float:
        path = surgery.compensate(base, variant.skip, overlay, chosen)
        return timing.milliseconds([path], LENGTH, provider)[path]

    means = replace(
        means,
        folder=graph.parent,
        milliseconds=milliseconds,
        timed_on=f"{store.sha256(base)} on {machine.device(base, provider)}",
        folds=store.graph_sidecar(base).contract == "authored" and variant.quantisation is None,
        quantisation=variant.quantisation,
    )
    store.overlays(base)  # what it is fitted on is what the graph was made with
    overlay = stage.compensate(source, variant.skip, settings, text, force, means)
    record = stage.record_of(overlay)
    path = surgery.compensate(base, variant.skip, overlay, record.settings.form)
    return Compensated(graph, path, overlay, record)
