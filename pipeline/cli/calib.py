"""Commands that learn from text which sublayers matter, and choose what to leave out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline import store
from pipeline.cli import arguments, extras, prerequisites, timing
from pipeline.cli import finalists as compared
from pipeline.cli.app import CHOOSE, DeviceMemory, Json, Model, ProviderOption, app, show_result
from pipeline.store import records
from pipeline.store.records import AdapterRecord, ChoiceRecord, HealSettings, SublayerTimes
from pipeline.types import CPU, Provider, UserError

if TYPE_CHECKING:
    from pipeline.calib.latency_budget import Round, TimeBudget
    from pipeline.calib.selectors import Choice, Question
    from pipeline.models.texts import TextInput

NEARLY = 5
"""So many of those that were nearly chosen are printed; --json has all."""

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
    provider: ProviderOption = "cpu",
    device_memory: DeviceMemory = None,
    precision: Annotated[str, typer.Option(help="That torch computes in: fp32, fp16 or bf16.")] = "fp32",
    force: Annotated[bool, typer.Option("--force", help="Measure again what is there and matches.")] = False,
    as_json: Json = False,
) -> None:
    """Measures how much each layer and sublayer changes the residual stream: cosine and angular distance.

    A run that was stopped goes on where it was.
    Example: `pipeline calibrate demo --samples 64 --length 256`
    """
    from pipeline.calib import calibrate as stage
    from pipeline.calib import similarity
    from pipeline.engines import taps
    from pipeline.models import checkpoint

    text = _text_input(texts, dataset, "pipeline calibrate")
    graph = None if runner == "torch" else Path(runner)
    device = arguments.provider(provider) if graph else arguments.torch_device(provider)
    arguments.bound_device_memory(device_memory, [device])
    settings = stage.CalibrationSettings(samples, length, buckets, device, precision)  # type: ignore[arg-type]
    source = checkpoint.resolve(arguments.model(model), proof=prerequisites.prove)
    graph_streams = partial(taps.graph_streams, provider=device)
    path = stage.calibrate(source.folder, text, settings, graph, graph_streams, force)
    if not as_json:
        arguments.print_table(similarity.table(source.model, similarity.of_checkpoint(source.folder)))
    record = records.read(records.SimilarityRecord, path)
    show_result({"path": str(path), **record.plain()}, as_json, str(path))


def _text_input(texts: list[Path] | None, dataset: str | None, command: str) -> TextInput:
    from pipeline.models.texts import TextInput

    if dataset:
        extras.needs("score", f"{command} --dataset")
    return TextInput(tuple(texts or ()), dataset)


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
        str, typer.Option("--select", help="The rule; each is a file in pipeline/calib/selectors/.")
    ] = "last",
    seed: Annotated[int, typer.Option(help="Of rules that draw.")] = 0,
    texts: Texts = None,
    dataset: Dataset = None,
    samples: Annotated[
        int | None,
        typer.Option(
            help="Sequences that greedy measures losses on (32), or residual and greedy-linear fit maps on "
            "(48)."
        ),
    ] = None,
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
    finalists: compared.FinalistsOption = None,
    form: compared.FormOption = None,
    tasks: compared.FinalistTasks = None,
    provider: ProviderOption = "cpu",
    device_memory: DeviceMemory = None,
    as_json: Json = False,
) -> None:
    """Prints what a rule would leave out, and the statistic of each sublayer that is chosen, or nearly so.

    With --finalists it compares that with the skip sets nearest to it, and the choice stays yours.
    Example: `pipeline select demo --kind block --count 8 --select angular`
    """
    from pipeline.calib import selectors
    from pipeline.calib.latency_budget import TimeBudget
    from pipeline.graphs.export import num_layers
    from pipeline.models import checkpoint
    from pipeline.types import count_of

    if sum(value is not None for value in (count, frac, speedup, latency_ms)) != 1:
        raise UserError("pipeline select takes exactly one of --count, --frac, --speedup and --latency-ms")
    text = _text_input(texts, dataset, "pipeline select")
    comparison = compared.Comparison.asked(finalists, form, tasks)
    is_timed = speedup is not None or latency_ms is not None
    devices = arguments.devices(provider, must=False) if is_timed or comparison else CPU
    runs_the_model = selector in selectors.RUN_THE_MODEL and not is_timed
    device: Provider = arguments.torch_device(provider) if runs_the_model else "cpu"
    arguments.bound_device_memory(device_memory, [device, devices.graphs, devices.torch])
    source = checkpoint.resolve(arguments.model(model), proof=prerequisites.prove)
    if is_timed:
        budget = TimeBudget(kind or "any", speedup, latency_ms, length or 100, devices)
        timed = _choose_by_time(source.folder, budget)
        if comparison is None:
            show_result(timed.plain(), as_json, timed.text())
            return
        choice = compared.timed_choice(source.folder, timed.kind, timed.rounds[-1].skip)
        nominated = compared.Nomination(source.folder, "cosine", choice, text, 0, budget.length, devices)
        compared.show(nominated, comparison, as_json)
        return
    layers = num_layers(source.config)
    number = count if count is not None else count_of(frac or 0.0, layers)
    statistics = selectors.ModelStatistics(source.folder, text, samples, length or 256, tokens, device)
    question = selectors.Question(kind or "block", number, layers, statistics, seed)
    choice = selectors.choose(selector, question)
    if comparison is not None:
        read = (samples or 0) * (length or 256)
        nominated = compared.Nomination(source.folder, selector, choice, text, read, compared.LENGTH, devices)
        compared.show(nominated, comparison, as_json)
        return
    record = _choice_record(selector, question, choice)
    show_result(record.plain(), as_json, _choice_text(record))


def _choice_record(selector: str, question: Question, choice: Choice) -> ChoiceRecord:
    return ChoiceRecord(
        skip=choice.skip.name,
        attention=choice.skip.attention,
        mlp=choice.skip.mlp,
        select=selector,
        kind=question.kind,
        count=question.count,
        statistic=choice.statistic,
        note=choice.note,
        chosen=tuple((name, float(value)) for name, value in choice.chosen),
        stays=tuple((name, float(value)) for name, value in choice.stays),
        device=question.statistics.device,
    )


def _choice_text(choice: ChoiceRecord) -> str:
    lines = [choice.skip, *(text for text in (choice.statistic, choice.note) if text)]
    for verdict, sublayers in (("goes", choice.chosen), ("stays", choice.stays[:NEARLY])):
        lines += [f"  {verdict:<5}  {name:<12} {value:.4f}" for name, value in sublayers]
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class TimedChoice:
    """What `pipeline select` chose for a time.

    Attributes:
        kind: 'attn', 'mlp', 'block' or 'any'.
        length: tokens of the prefill that was timed.
        seconds: of a pass and of its sublayers.
        rounds: what was tried, the last one the choice.
        reached: whether it keeps the time.
        provider: of ONNX Runtime, that was timed.
    """

    kind: str
    length: int
    seconds: SublayerTimes
    rounds: list[Round]
    reached: bool
    provider: Provider = "cpu"

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        last = self.rounds[-1]
        return {
            "skip": last.skip.name,
            "attention": last.skip.attention,
            "mlp": last.skip.mlp,
            "kind": self.kind,
            "reached": self.reached,
            "speedup": last.measured,
            "length": self.length,
            "provider": self.provider,
            "seconds": self.seconds.plain(),
            "rounds": [{**asdict(one), "skip": one.skip.name} for one in self.rounds],
        }

    def text(self) -> str:
        """For a person."""
        times = self.seconds
        lines = [
            self.rounds[-1].skip.name,
            f"  a sublayer takes {times.attn * 1e3:.2f} ms (attn), {times.mlp * 1e3:.2f} ms (mlp) "
            f"of {times.whole * 1e3:.1f}",
        ]
        lines += [
            f"  {one.skip.name}: predicted {one.predicted:.3f}x, measured {one.measured:.3f}x; "
            f"Σ(1 - cosine) {one.damage:.3f}"
            for one in self.rounds
        ]
        if not self.reached:
            lines.append("  the time was not reached; this is the nearest that was measured last")
        return "\n".join(lines)


def _choose_by_time(folder: Path, budget: TimeBudget) -> TimedChoice:
    if budget.latency_ms is not None and budget.latency_ms <= 0:
        raise UserError(f"--latency-ms {budget.latency_ms:g} is not above 0")
    rounds, reached, times = timing.within_budget(folder, budget)
    return TimedChoice(budget.kind, budget.length, times, rounds, reached, budget.devices.graphs)


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
    text = _text_input(texts, dataset, "pipeline heal")
    graphs = [graph for graph in graphs if not store.variant(graph).adapter] or graphs
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
