"""Commands that look: one artefact, all of them, this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import Json, app, show_result


@app.command("list")
def list_(as_json: Json = False) -> None:
    """What exists: models, graphs, engines, and whether each has passed its check.

    Example: `pipeline list --json`
    """
    from pipeline import show as stage

    found = stage.inventory()
    show_result(found, as_json, stage.inventory_text(found))


@app.command()
def show(path: Annotated[Path, typer.Argument(help="Graph or engine.")], as_json: Json = False) -> None:
    """One artefact whole: what is left out, what that saves, and its skip set in the forms other tools take.

    Example: `pipeline show graphs/*/attn22-29.fp32.onnx`
    """
    from pipeline import show as stage

    described = stage.describe(path)
    show_result(described, as_json, stage.describe_text(described))


@app.command()
def doctor(as_json: Json = False) -> None:
    """What this machine can run, what is missing, and the command that adds it.

    Example: `pipeline doctor`
    """
    from pipeline import doctor as stage

    found = stage.examine()
    show_result(found, as_json, stage.text(found))
