"""Commands that look: one text, one artefact, all of them, this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline import store
from pipeline.cli.app import Json, app, show_result


@app.command()
def generate(
    artefact: Annotated[Path, typer.Argument(help="Graph or engine.")],
    prompt: Annotated[str, typer.Argument(help="The text to go on with.")],
    max_tokens: Annotated[int, typer.Option(help="At most so many new tokens.")] = 32,
    as_json: Json = False,
) -> None:
    """Goes on with a text, greedily.

    Example: `pipeline generate graphs/*/base.fp32.onnx "The capital of France is"`
    """
    from pipeline import backends
    from pipeline import generate as stage
    from pipeline.texts import tokenizer

    with backends.open_runner(artefact) as runner:
        folder = store.checkpoint_folder(artefact)
        words = tokenizer(folder)
        tokens = list(stage.greedy(runner, words.encode(prompt), max_tokens, stage.stop_tokens(folder)))
    text = words.decode(tokens, skip_special_tokens=True)
    show_result({"prompt": prompt, "text": text, "tokens": tokens}, as_json, prompt + text)


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
