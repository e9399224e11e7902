"""Commands that hold artefacts against PyTorch and the clock."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline import arguments, chains
from pipeline.cli.app import Json, Paths, app, show_result


@app.command()
def check(
    paths: Paths = None,
    localize: Annotated[bool, typer.Option("--localize", help="Name the first sublayer that diverges.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Check again what has passed.")] = False,
    reference: Annotated[Path | None, typer.Option(help="Folder of the checkpoint, for graphs exported elsewhere.")] = None,
    as_json: Json = False,
) -> None:
    """Runs artefacts beside PyTorch, with Polygraphy; exit 1 where one fails.

    Example: `pipeline check graphs/*/mlp22-29.fp32.onnx`
    """
    from pipeline import compare as stage

    results = []
    for path in arguments.artefacts(paths, engines=chains.has_gpu()):
        with arguments.busy(f"checking {path}"):
            results.append(stage.check(path, localize=localize, force=force, reference=reference))
    show_result([result.record() for result in results], as_json, "\n".join(result.summary() for result in results))
    if not all(result.passed for result in results):
        raise typer.Exit(1)


@app.command()
def bench(
    paths: Paths = None,
    sequences: Annotated[int, typer.Option(help="Sequences of each length.")] = 1000,
    lengths: Annotated[str, typer.Option(help="Input lengths in tokens.")] = "50,100",
    batch: Annotated[int, typer.Option(help="Sequences at once.")] = 1,
    decode: Annotated[bool, typer.Option("--decode", help="Time one further token on a cache of that length.")] = False,
    compare: Annotated[str | None, typer.Option(help="torch, optimum: time these too, in the same interleaved run.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Score these benchmarks too (`pipeline score --help`).")] = None,
    limit: Annotated[int | None, typer.Option(help="Documents a task at most, for --tasks.")] = None,
    data: Annotated[Path | None, typer.Option(envvar="PIPELINE_DATA", help="Folder of local rows, for --tasks.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 is one a core.")] = 0,
    unchecked: Annotated[bool, typer.Option("--unchecked", help="Measure what has passed no check, and record that.")] = False,
    as_json: Json = False,
) -> None:
    """The papers' measurement: the time to predict 1 token for each of 1000 sequences, interleaved with base.

    What has not been checked is checked first; the scores that exist stand beside the latencies.
    Example: `pipeline bench graphs/*/mlp22-29.fp32.onnx --sequences 100 --tasks smoke`
    """
    from dataclasses import asdict

    from pipeline import bench as stage
    from pipeline.scoring import results

    if tasks:
        chains.known_tasks(tasks)  # a misspelt name costs no hour of timing
    taken = arguments.artefacts(paths, engines=chains.has_gpu(), precision="fp32")
    others = tuple(part for part in (compare or "").split(",") if part)
    report = stage.bench(
        chains.checked(taken, unchecked),
        sequences=sequences,
        lengths=tuple(arguments.numbers(lengths, "--lengths")),
        batch=batch,
        decode=decode,
        compare=others,
        optimum_graphs=chains.optimum_twins(taken) if "optimum" in others else {},
        threads=threads,
        unchecked=unchecked,
    )
    measured = [Path(artefact) for artefact in stage.short(report)]
    scores = chains.scored(measured, tasks, limit, data, unchecked)
    if as_json:
        show_result({**report.record(), "scores": [asdict(score) for score in scores]}, True)
        return
    arguments.print_table(stage.table(report))
    if scores:
        arguments.print_table(results.table(scores, stage.short(report)))
