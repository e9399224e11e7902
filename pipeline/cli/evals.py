"""Commands that compare artefacts with PyTorch, time them and score them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline import store
from pipeline.cli import arguments, extras, prerequisites
from pipeline.cli.app import MEASURE, DeviceMemory, Json, Paths, ProviderOption, app, show_result

Tasks = Annotated[
    str,
    typer.Option(
        help="arc, hellaswag, truthfulqa, mmlu, boolq, gsm8k, qmsum, cot-mmlu, c4-loss, smoke, probes (or "
        "one of its four: probe-arithmetic, -brackets, -copy, -facts), one subject (mmlu_anatomy), or any "
        "task of lm-eval's; several with commas."
    ),
]
Limit = Annotated[int | None, typer.Option(help="Documents a task at most; all by default.")]
Data = Annotated[
    Path | None,
    typer.Option(
        envvar="PIPELINE_DATA", help="Folder of local rows: fully offline. By default the Hugging Face hub."
    ),
]


@app.command(rich_help_panel=MEASURE)
def check(
    paths: Paths = None,
    localize: Annotated[
        bool, typer.Option("--localize", help="Name the first sublayer that diverges.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Check again what has passed.")] = False,
    reference: Annotated[
        Path | None, typer.Option(help="Folder of the checkpoint, for graphs exported elsewhere.")
    ] = None,
    provider: ProviderOption = "cpu",
    device_memory: DeviceMemory = None,
    as_json: Json = False,
) -> None:
    """Runs artefacts beside PyTorch, with Polygraphy; exit 1 where one fails.

    Example: `pipeline check graphs/*/mlp22-29.fp32.onnx`
    """
    results, chosen = [], arguments.devices(provider, must=provider == "cuda")
    artefacts = arguments.artefacts(paths, engines=prerequisites.has_gpu())
    arguments.bound_device_memory(device_memory, [chosen.graphs, chosen.torch], artefacts)
    for path in artefacts:
        store.sidecar(path)  # a wrong name is said before PyTorch is imported, which takes seconds
    from pipeline.evals.check import check as stage

    for path in artefacts:
        with arguments.busy(f"checking {path}"):
            results.append(
                stage.check(path, localize=localize, force=force, reference=reference, devices=chosen)
            )
    show_result(
        [result.plain() for result in results], as_json, "\n".join(result.summary() for result in results)
    )
    if not all(result.passed for result in results):
        raise typer.Exit(1)


@app.command(rich_help_panel=MEASURE)
def bench(
    paths: Paths = None,
    sequences: Annotated[int, typer.Option(help="Sequences of each length.")] = 1000,
    lengths: Annotated[str, typer.Option(help="Input lengths in tokens.")] = "50,100",
    batch: Annotated[int, typer.Option(help="Sequences at once.")] = 1,
    decode: Annotated[
        bool, typer.Option("--decode", help="Time one further token on a cache of that length.")
    ] = False,
    compare: Annotated[
        str | None, typer.Option(help="torch, optimum: time these too, in the same interleaved run.")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Score these benchmarks too (`pipeline score --help`).")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Documents a task at most, for --tasks.")] = None,
    data: Annotated[
        Path | None, typer.Option(envvar="PIPELINE_DATA", help="Folder of local rows, for --tasks.")
    ] = None,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 is one a core.")] = 0,
    unchecked: Annotated[
        bool, typer.Option("--unchecked", help="Measure what has passed no check, and record that.")
    ] = False,
    provider: ProviderOption = "cpu",
    device_memory: DeviceMemory = None,
    as_json: Json = False,
) -> None:
    """The papers' measurement: the time to predict 1 token for each of 1000 sequences, interleaved with base.

    What has not been checked is checked first; the scores that exist stand beside the latencies. Quantised
    weights are compared with the base that has the checkpoint's own too, where that is named beside them.
    Example: `pipeline bench graphs/*/mlp22-29.fp32.onnx --sequences 100 --tasks smoke`
    """
    others = tuple(part for part in (compare or "").split(",") if part)
    if tasks:
        extras.needs("score", "pipeline bench --tasks")
        arguments.without_bars()
    if "optimum" in others:
        extras.needs("optimum", "pipeline bench --compare optimum")
    chosen = arguments.devices(provider, must="torch" in others)  # beside CUDA, no time of PyTorch on the CPU
    from pipeline.evals.bench import bench as stage
    from pipeline.evals.bench import table as latencies
    from pipeline.evals.score import tables
    from pipeline.evals.score.settings import ScoreSettings

    artefacts = arguments.artefacts(paths, engines=prerequisites.has_gpu(), precision="fp32")
    arguments.bound_device_memory(device_memory, [chosen.graphs], artefacts)
    if tasks:
        prerequisites.known_tasks(tasks, artefacts)  # a misspelt name costs no hour of timing
    settings = stage.BenchSettings(
        sequences=sequences,
        lengths=tuple(arguments.numbers(lengths, "--lengths")),
        batch=batch,
        decode=decode,
        compare=others,
        threads=threads,
        unchecked=unchecked,
        provider=chosen.graphs,
    )
    twins = prerequisites.optimum_twins(artefacts) if "optimum" in others else {}
    report = stage.bench(prerequisites.checked(artefacts, unchecked, chosen), settings, optimum_graphs=twins)
    beside = latencies.short(report)
    asked = ScoreSettings(limit=limit, data=data, unchecked=unchecked, provider=chosen.graphs)
    scores = prerequisites.scored([Path(path) for path in beside], tasks, asked)
    if as_json:
        show_result({**report.plain(), "scores": [score.plain() for score in scores]}, True)
        return
    arguments.print_table(latencies.table(report))
    if scores:
        arguments.print_table(tables.table(scores, beside))


@app.command(rich_help_panel=MEASURE)
def score(
    paths: Paths = None,
    tasks: Tasks = "smoke",
    limit: Limit = None,
    num_fewshot: Annotated[
        int | None, typer.Option(help="Examples before a question, not the benchmark's own number.")
    ] = None,
    data: Data = None,
    protocol: Annotated[
        str, typer.Option(help="lm-eval, or v1: Open LLM Leaderboard v1 (no BOS, MMLU over subjects).")
    ] = "lm-eval",
    together: Annotated[
        bool, typer.Option("--together", help="Merge the graphs and score all variants in one pass.")
    ] = False,
    batch_tokens: Annotated[int, typer.Option(help="Tokens of one forward pass.")] = 2048,
    cache_mb: Annotated[int, typer.Option(help="Memory of the prefix cache.")] = 1024,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 is one a core.")] = 0,
    log_samples: Annotated[
        bool, typer.Option("--log-samples", help="Write each question's answers beside the result.")
    ] = False,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh/--resume", help="Forget the answers that earlier runs kept, or go on from them."
        ),
    ] = False,
    unchecked: Annotated[
        bool, typer.Option("--unchecked", help="Score what has passed no check, and record that.")
    ] = False,
    provider: ProviderOption = "cpu",
    device_memory: DeviceMemory = None,
    as_json: Json = False,
) -> None:
    """Scores artefacts on benchmarks: prompts, shots and metrics are lm-evaluation-harness's own.

    A run that was stopped goes on where it was.
    Example: `pipeline score graphs/*/base.fp32.onnx --tasks smoke`
    """
    extras.needs("score", "pipeline score")
    arguments.without_bars()
    artefacts = arguments.artefacts(paths, engines=prerequisites.has_gpu(), precision="fp32")
    from pipeline.evals.score import benchmarks, tables
    from pipeline.evals.score import score as stage

    names, graphs_on = benchmarks.check_names(tasks), arguments.provider(provider)
    arguments.bound_device_memory(device_memory, [graphs_on], artefacts)
    merged = prerequisites.merged(artefacts, unchecked, graphs_on) if together else None
    settings = stage.ScoreSettings(
        limit=limit,
        num_fewshot=num_fewshot,
        data=data,
        log_samples=log_samples,
        protocol=protocol,
        batch_tokens=batch_tokens,
        memory_mb=cache_mb,
        threads=threads,
        fresh=fresh,
        unchecked=unchecked,
        provider=graphs_on,
    )
    scores = stage.score(artefacts, names, settings, merged)
    if as_json:
        show_result([score.plain() for score in scores], True)
    else:
        arguments.print_table(tables.table(scores))


@app.command(
    "lm-eval",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    rich_help_panel=MEASURE,
)
def lm_eval(context: typer.Context) -> None:
    """lm-eval's own command, with the model `pipeline` known to it.

    Its --help is passed on. Example:
    `pipeline lm-eval --model pipeline --model_args artefact=graphs/…/base.fp32.onnx --tasks arc_easy`
    """
    extras.needs("score", "pipeline lm-eval")
    from pipeline.evals.score import command

    command.run(context.args)
