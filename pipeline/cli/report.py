"""Commands that draw what has been measured."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from pipeline import store
from pipeline.cli import arguments, extras
from pipeline.cli.app import MEASURE, Json, Model, app, show_result
from pipeline.types import UserError


@app.command(rich_help_panel=MEASURE)
def report(
    out: Annotated[Path | None, typer.Option(help="Folder of the report; evals/report by default.")] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Only this model; repeat for several. All by default.")
    ] = None,
    lm_eval: Annotated[
        Path | None,
        typer.Option(
            "--lm-eval", help="Also lay the scores out in this folder as lm-eval's own tools look for them."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Draws the report from result files: page, Markdown, LaTeX, CSV; the papers' tables beside ours.

    Logs to MLflow too where MLFLOW_TRACKING_URI is set.
    Example: `pipeline report && python -m http.server -d evals/report`
    """
    extras.needs("report", "pipeline report")
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        extras.needs("mlflow", "pipeline report with MLFLOW_TRACKING_URI")
    from pipeline.report import collect, exports
    from pipeline.report import report as stage

    folder = out or store.Project().report()
    named = [arguments.model_folder(name) for name in model] if model else None
    with arguments.busy("reading results"):
        collection = collect.collect(named)
        written = stage.write(folder, collection)
    if lm_eval is not None:
        written += exports.lm_eval(lm_eval, collection)
    if uri:
        logged = exports.mlflow(uri, collection)
        arguments.say(f"MLflow: {len(logged)} new runs at {uri}")
    show_result([str(path) for path in written], as_json, str(written[0]))


@app.command(rich_help_panel=MEASURE)
def figures(
    model: Model = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Names of figures; all that have data by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Draws the papers' figures of a model: PNG, SVG, and their numbers as CSV.

    Example: `pipeline figures demo --only cosine --only angular`
    """
    extras.needs("report", "pipeline figures")
    from pipeline.report import figures as stage

    name = arguments.model_folder(model)
    written = []
    for figure in only or stage.names():
        try:
            written += stage.write(name, figure)
        except UserError as error:
            if only:
                raise
            arguments.say(f"{figure}: {error}")
    if not written:
        raise UserError(
            f"nothing of {name} has been measured that a figure shows; "
            f"begin with `pipeline calibrate {shlex.quote(name)}`"
        )
    show_result([str(path) for path in written], as_json, "\n".join(str(path) for path in written))
