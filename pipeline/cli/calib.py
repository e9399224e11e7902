"""Commands that learn from text which sublayers matter, and choose what to leave out."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import arguments, budgets, choices, prerequisites, published
from pipeline.cli import finalists as compared
from pipeline.cli.app import CHOOSE, DeviceMemory, Json, Model, ProviderOption, app, show_result
from pipeline.cli.evo_options import Compensated, Generations, Minutes, Start
from pipeline.cli.rule_options import RuleOptions
from pipeline.cli.text_options import Dataset, Texts, text_input
from pipeline.store import records
from pipeline.types import CPU, Provider, UserError

if TYPE_CHECKING:
    pass


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

    text = text_input(texts, dataset, "pipeline calibrate")
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
        str | None,
        typer.Option(
            "--select",
            help="The rule, by default last; each is a file in pipeline/calib/selectors/. With a time cosine "
            "(default) or evo.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of rules that draw (0).")] = None,
    texts: Texts = None,
    dataset: Dataset = None,
    samples: Annotated[
        int | None,
        typer.Option(
            help="Sequences that greedy (32) and evo (8) measure on, or residual and greedy-linear fit maps "
            "on (48)."
        ),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(help="Tokens of each (256); with a time: of the text that is timed (100)."),
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(help="Where angular reads the distance: final (default) or mean.")
    ] = None,
    speedup: Annotated[
        float | None, typer.Option(help="Instead of a count: so much faster than the whole model, 1.2.")
    ] = None,
    latency_ms: Annotated[
        float | None, typer.Option(help="Instead of a count: so many milliseconds for --length tokens.")
    ] = None,
    start: Start = None,
    compensated: Compensated = False,
    minutes: Minutes = None,
    generations: Generations = None,
    model_option: Annotated[str | None, typer.Option("--model", help="Instead of MODEL.")] = None,
    set_name: Annotated[
        str | None,
        typer.Option("--set", help="Name of a published set.", callback=arguments.not_empty),
    ] = None,
    finalists: compared.FinalistsOption = None,
    form: compared.FormOption = None,
    tasks: compared.FinalistTasks = None,
    provider: ProviderOption = "cpu",
    device_memory: DeviceMemory = None,
    as_json: Json = False,
) -> None:
    """Prints what a rule would leave out, and the statistic of each sublayer that is chosen, or nearly so.

    With --select published it lists the sets that others printed of a model, which need not be here.
    With --finalists it measures the choice beside the skip sets nearest to it; which to take stays yours.
    Example: `pipeline select demo --kind block --count 8 --select angular`
    """
    from pipeline.calib.evolution.options import EvoOptions

    name = arguments.one_model(model, model_option)
    is_timed = speedup is not None or latency_ms is not None
    rule = selector or ("cosine" if is_timed else "last")
    options = EvoOptions(start, compensated, minutes, generations)
    options.belong_to(rule)
    typed = RuleOptions(seed, tokens, texts, dataset, samples, length)
    typed.belong_to(rule, start, is_timed, finalists is not None)
    comparison = compared.FinalistOptions.asked(finalists, form, tasks)
    if rule == "published" or set_name is not None:
        published.refuse_other_options(rule, set_name, is_timed, comparison is not None)
        published.select(name, published.wanted(kind, count, frac, set_name), as_json)
        return
    from pipeline.calib import selectors
    from pipeline.calib.latency_budget import TimeBudget
    from pipeline.graphs.export import num_layers
    from pipeline.models import checkpoint
    from pipeline.types import count_of

    if sum(value is not None for value in (count, frac, speedup, latency_ms)) != 1:
        raise UserError("pipeline select takes exactly one of --count, --frac, --speedup and --latency-ms")
    text = text_input(texts, dataset, "pipeline select")
    devices = arguments.devices(provider, must=False) if is_timed or comparison else CPU
    device: Provider = devices.torch
    if not is_timed and selectors.runs_the_model(rule):
        device = arguments.torch_device(provider)
    arguments.bound_device_memory(device_memory, [device, devices.graphs])
    source = checkpoint.resolve(name, proof=prerequisites.prove)
    layers = num_layers(source.config)
    number = count if count is not None else count_of(frac or 0.0, layers)
    measured = 256 if is_timed or length is None else length
    statistics = selectors.ModelStatistics(source.folder, text, samples, measured, tokens or "final", device)
    question = selectors.Question(kind or "block", number, layers, statistics, seed or 0, options)
    if is_timed:
        budget = TimeBudget(kind or "any", speedup, latency_ms, 100 if length is None else length, devices)
        timed = budgets.choose(source.folder, budget, rule, question)
        if comparison:
            compared.show(compared.timed(timed, statistics, devices), comparison, as_json)
        else:
            show_result(timed.plain(), as_json, timed.text())
        return
    choice = selectors.choose(rule, question)
    if comparison:
        compared.show(compared.Nomination(rule, choice, statistics, devices), comparison, as_json)
        return
    record = choices.record(rule, question, choice)
    show_result(record.plain(), as_json, choices.text(record))
