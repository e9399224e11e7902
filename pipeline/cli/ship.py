"""Commands that put variants to work: a Triton repository, the server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import arguments, extras
from pipeline.cli.app import DELIVER, Json, ProviderOption, app, show_result
from pipeline.types import UserError


@app.command(rich_help_panel=DELIVER)
def ship(
    artefacts: Annotated[list[Path], typer.Argument(help="Graphs and engines that have passed their check.")],
    to: Annotated[
        tuple[str, Path],
        typer.Option(help="triton, and the folder of the model repository.", metavar="triton DIR"),
    ],
    name: Annotated[
        str | None, typer.Option(help="Of the model; of several the beginning of their names.")
    ] = None,
    rows: Annotated[int, typer.Option(help="Requests side by side at most.")] = 16,
    cache_tokens: Annotated[
        int, typer.Option(help="Tokens of keys and values at most, padding included.")
    ] = 16_384,
    queue: Annotated[int, typer.Option(help="Requests that wait at most; one more gets an error.")] = 128,
    unchecked: Annotated[
        bool, typer.Option("--unchecked", help="Also what has passed no check; it is recorded.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Writes a Triton model repository: each variant as NAME (tensors) and NAME_generate (text, streamed).

    Example: `pipeline ship graphs/*/base.fp32.onnx graphs/*/attn22-29.fp32.onnx --to triton engines/triton`
    """
    extras.needs("serve", "pipeline ship")
    arguments.without_torch()
    from pipeline.ship import ship as stage

    if to[0] != "triton":
        raise UserError(f"--to takes triton and a folder, not {to[0]!r}")
    with arguments.busy(f"shipping {len(artefacts)} artefacts"):
        settings = stage.settings_of(rows, cache_tokens, queue)
        shipment = stage.ship(artefacts, to[1], name, unchecked, settings)
    show_result(shipment.plain(), as_json, f"{shipment.described()}\n{to[1]}")


@app.command(rich_help_panel=DELIVER)
def serve(
    folder: Annotated[Path, typer.Argument(help="A model repository that `pipeline ship` wrote.")],
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Start, run every check, stop; exit 1 where one fails.")
    ] = False,
    openai: Annotated[bool, typer.Option("--openai", help="Also an OpenAI-compatible front.")] = False,
    docker: Annotated[
        bool, typer.Option("--docker", help="Only print the command for a machine with a GPU.")
    ] = False,
    http_port: Annotated[int, typer.Option(help="0 picks a free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="0 picks a free one.")] = 8001,
    metrics_port: Annotated[int, typer.Option(help="0 picks a free one.")] = 8002,
    openai_port: Annotated[int, typer.Option(help="0 picks a free one.")] = 9000,
    log_file: Annotated[Path | None, typer.Option(help="Keep Triton's own output here.")] = None,
    provider: ProviderOption = "cpu",
    as_json: Json = False,
) -> None:
    """Starts the real Triton server on this machine (fetched once, 400 MB); Ctrl-C stops it.

    Graphs run on the CPU, or on CUDA with --provider (some GB more, once); of a plan the graph that it was
    built from. Example: `pipeline serve engines/triton --smoke`
    """
    import shlex
    from dataclasses import asdict

    from pipeline.ship.ports import Ports
    from pipeline.ship.triton import page, repository

    if docker:
        print(page.docker(shlex.quote(str(folder.resolve())), repository.read(folder)))
        return
    extras.needs("serve", "pipeline serve")
    repository.read(folder)  # a wrong folder is said before CUDA is asked for
    from pipeline.ship import serve as stage
    from pipeline.ship.triton import wheel

    graphs_on = arguments.provider(provider, wheel.refusal)
    if not smoke:
        ports = Ports(http_port, grpc_port, metrics_port)
        stage.serve(folder, ports, openai_port if openai else None, log_file, graphs_on)
        return
    checks = stage.smoke(folder, graphs_on)
    failed = sum(not check.passed for check in checks)
    text = f"{len(checks) - failed} checks passed, {failed} failed"
    show_result([asdict(check) for check in checks], as_json, text)
    if failed:
        sys.exit(1)
