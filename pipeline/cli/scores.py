"""Commands that score artefacts on benchmarks, through lm-evaluation-harness."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline import arguments, chains
from pipeline.cli.app import Json, Paths, app, show_result

Tasks = Annotated[
    str,
    typer.Option(
        help="arc, hellaswag, truthfulqa, mmlu, boolq, gsm8k, qmsum, cot-mmlu, c4-loss, smoke, one subject (mmlu_anatomy), "
        "or any task of lm-eval's; several with commas."
    ),
]
Limit = Annotated[int | None, typer.Option(help="Documents a task at most; all by default.")]
Data = Annotated[
    Path | None,
    typer.Option(envvar="PIPELINE_DATA", help="Folder of local rows: fully offline. By default the Hugging Face hub."),
]


@app.command()
def score(
    paths: Paths = None,
    tasks: Tasks = "smoke",
    limit: Limit = None,
    num_fewshot: Annotated[int | None, typer.Option(help="Examples before a question, not the benchmark's own number.")] = None,
    data: Data = None,
    protocol: Annotated[
        str, typer.Option(help="lm-eval, or v1: Open LLM Leaderboard v1 (no BOS, MMLU over subjects).")
    ] = "lm-eval",
    together: Annotated[bool, typer.Option("--together", help="Merge the graphs and score all variants in one pass.")] = False,
    batch_tokens: Annotated[int, typer.Option(help="Tokens of one forward pass.")] = 2048,
    cache_mb: Annotated[int, typer.Option(help="Memory of the prefix cache.")] = 1024,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 is one a core.")] = 0,
    log_samples: Annotated[
        bool, typer.Option("--log-samples", help="Write each question's answers beside the result.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh/--resume", help="Forget the answers that earlier runs kept, or go on from them.")
    ] = False,
    unchecked: Annotated[bool, typer.Option("--unchecked", help="Score what has passed no check, and record that.")] = False,
    as_json: Json = False,
) -> None:
    """Scores artefacts on benchmarks: prompts, shots and metrics are lm-evaluation-harness's own.

    A run that was stopped goes on where it was. Example: `pipeline score graphs/*/base.fp32.onnx --tasks smoke`
    """
    from dataclasses import asdict

    os.environ.setdefault("TQDM_DISABLE", "1")  # one progress bar, and it is ours
    taken = arguments.artefacts(paths, engines=chains.has_gpu(), precision="fp32")
    from pipeline import score as stage

    names = stage.benchmarks.check_names(tasks)
    merged = chains.merged(taken, unchecked) if together else None
    found = stage.score(
        taken, names, limit=limit, num_fewshot=num_fewshot, data=data, protocol=protocol, merged=merged, batch_tokens=batch_tokens,
        memory_mb=cache_mb, threads=threads, fresh=fresh, log_samples=log_samples, unchecked=unchecked,
    )  # fmt: skip
    if as_json:
        show_result([asdict(one) for one in found], True)
    else:
        arguments.print_table(stage.results.table(found))


@app.command("lm-eval", context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def lm_eval(context: typer.Context) -> None:
    """lm-eval's own command, with the model `pipeline` known to it.

    Its --help is passed on. Example: `pipeline lm-eval --model pipeline --model_args artefact=graphs/…/base.fp32.onnx --tasks arc_easy`
    """
    from lm_eval.__main__ import cli_evaluate

    from pipeline.scoring import harness  # noqa: F401 - importing it registers the model

    sys.argv = ["lm-eval", *context.args]
    cli_evaluate()
