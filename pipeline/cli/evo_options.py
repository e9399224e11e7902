"""The options of `--select evo`, which `select` and `export` share."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli import arguments

Start = Annotated[
    str | None,
    typer.Option(
        help="Of evo: a rule (cosine), or a skip set, that the search begins with.",
        callback=arguments.not_empty,
    ),
]
Compensated = Annotated[
    bool,
    typer.Option("--compensated", help="Of evo: with linear maps in the place of all that is gone."),
]
Minutes = Annotated[
    float | None,
    typer.Option(help="Of evo: minutes of search at most; a search goes on where it was with more."),
]
Generations = Annotated[
    int | None,
    typer.Option(help="Of evo: at most (50); it ends before where 15 of them find nothing better."),
]
