"""The command that runs the whole grid."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import extras
from pipeline.cli.app import MEASURE, Json, app, show_result
from pipeline.types import Failed


@app.command(rich_help_panel=MEASURE)
def sweep(
    recipe: Annotated[
        Path,
        typer.Argument(help="TOML: models × kinds × fractions × selectors × precisions × stages × tasks."),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the commands, what is done, disk and time; run nothing.")
    ] = False,
    jobs: Annotated[
        int | None, typer.Option(help="Side by side on a machine; by default one for every four cores.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster, or `local`.", metavar="ADDRESS|local")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Jobs that are run at most; the next call goes on.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Runs calibrate, select, export, compensate, check, build, score, bench, heal, ship for a grid.

    Each job is a command. Finished jobs are passed over, and a killed sweep goes on where it was.
    A failure is recorded, and the rest goes on (exit 1).
    Example: `pipeline sweep evals/recipes/demo.toml --dry-run`
    """
    if ray:
        extras.needs("ray", "pipeline sweep --ray")
    from pipeline.sweep import sweep as stage
    from pipeline.sweep.ledger import DONE, FAILED, WAITING

    if dry_run:
        overview = stage.dry_run(recipe)
        show_result(overview.record(), as_json, overview.text())
        return
    ledger = stage.sweep(recipe, jobs=jobs, ray=ray, limit=limit)
    failed = ledger.failed()
    counts = ", ".join(
        f"{number} {state}" for state in (DONE, FAILED, WAITING) if (number := ledger.count(state))
    )
    lines = [f"failed  {job.id}: {ledger.states[job.id].error}" for job in failed]
    show_result(ledger.record().plain(), as_json, "\n".join([*lines, counts, str(ledger.file)]))
    if failed:
        raise Failed(f"{len(failed)} of {ledger.total} jobs failed; {ledger.folder}/logs has what each said")
