"""Commands that put variants to work: Triton, other engines' formats, the server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import arguments, extras
from pipeline.cli.app import DELIVER, Json, ProviderOption, app, show_result
from pipeline.types import UserError

if TYPE_CHECKING:
    from pipeline.ship.gguf.shipment import GgufShipment
    from pipeline.ship.hf.ship import HfShipment


TARGETS = {
    "triton": {"name", "rows", "cache_tokens", "queue"},
    "gguf": {"kind"},
    "hf": {"force"},
}
"""Where to → the options that are of it alone."""


@app.command(rich_help_panel=DELIVER)
def ship(
    context: typer.Context,
    artefacts: Annotated[
        list[Path], typer.Argument(help="Graphs that have passed their check; engines too, for triton.")
    ],
    to: Annotated[
        tuple[str, Path],
        typer.Option(
            help="triton and the folder of a model repository; gguf and a file; hf and a folder.",
            metavar="triton|gguf|hf PATH",
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="triton: of the model; of several the beginning of their names.")
    ] = None,
    rows: Annotated[int, typer.Option(help="triton: requests side by side at most.")] = 16,
    cache_tokens: Annotated[
        int, typer.Option(help="triton: tokens of keys and values at most, padding included.")
    ] = 16_384,
    queue: Annotated[
        int, typer.Option(help="triton: requests that wait at most; one more gets an error.")
    ] = 128,
    kind: Annotated[
        str | None,
        typer.Option(
            "--type",
            help="gguf: f32, f16, bf16, q8_0, …; source: the bytes of the GGUF that the model came from, "
            "which is the default there. Quantised weights in blocks of 32 stay Q4_0 and Q8_0, bit for bit.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="hf: also what only some of the engines load.")
    ] = False,
    unchecked: Annotated[
        bool, typer.Option("--unchecked", help="Also what has passed no check; it is recorded.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Writes variants for where they are served: a Triton repository, a GGUF file, a Hugging Face folder.

    A Triton repository has each as NAME (tensors) and NAME_generate (text, streamed); docs/guide/elsewhere.md
    says which engine runs which variant from the other two.
    Example: `pipeline ship graphs/*/base.fp32.onnx graphs/*/attn22-29.fp32.onnx --to triton engines/triton`;
    `pipeline ship graphs/*/attn22-29.fp32.onnx --to gguf attn22-29.gguf`
    """
    target, place = to
    _refuse_options(context, target)
    arguments.without_torch()
    if target != "triton":
        with arguments.busy(f"writing {place}"):
            shipped = _ship_elsewhere(artefacts, to, kind, force, unchecked)
        show_result(shipped.plain(), as_json, f"{shipped.described()}\n{place}")
        return
    extras.needs("serve", "pipeline ship")
    from pipeline.ship.triton import ship as stage

    with arguments.busy(f"shipping {len(artefacts)} artefacts"):
        settings = stage.settings_of(rows, cache_tokens, queue)
        shipment = stage.ship(artefacts, place, name, unchecked, settings)
    show_result(shipment.plain(), as_json, f"{shipment.described()}\n{place}")


def _refuse_options(context: typer.Context, target: str) -> None:
    """Refuses a target that there is not, and an option of another one, which would do nothing."""
    if target not in TARGETS:
        raise UserError(f"--to takes triton, gguf or hf and a path, not {target!r}")
    for other, options in TARGETS.items():
        for option in sorted(options - TARGETS[target]):
            source = context.get_parameter_source(option)
            if source is not None and source.name == "COMMANDLINE":
                word = "type" if option == "kind" else option.replace("_", "-")
                raise UserError(f"--{word} is of --to {other}, not of --to {target}; leave it out")


def _ship_elsewhere(
    artefacts: list[Path], to: tuple[str, Path], kind: str | None, force: bool, unchecked: bool
) -> GgufShipment | HfShipment:
    """One variant as a GGUF file or a Hugging Face folder."""
    target, place = to
    if len(artefacts) != 1:
        raise UserError(f"--to {target} takes one graph at a time, and {len(artefacts)} are named")
    if target == "gguf":
        from pipeline.ship.gguf import ship as gguf

        return gguf.ship(artefacts[0], place, kind, unchecked)
    from pipeline.ship.hf import ship as hf

    return hf.ship(artefacts[0], place, force, unchecked)


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
    host: Annotated[
        str, typer.Option(help="Where the gate (HTTP) and the OpenAI front listen.")
    ] = "127.0.0.1",
    api_key: Annotated[
        str | None,
        typer.Option(
            help="Ask clients for this bearer token; PIPELINE_API_KEY keeps it out of the process list."
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="Another name that clients use for this server; may be repeated."),
    ] = None,
    request_timeout: Annotated[
        float, typer.Option(help="Seconds from a request's arrival to its end, at most.")
    ] = 300,
    log_file: Annotated[Path | None, typer.Option(help="Keep Triton's own output here.")] = None,
    provider: ProviderOption = "cpu",
    as_json: Json = False,
) -> None:
    """Starts the real Triton server on this machine (fetched once, 400 MB); Ctrl-C stops it.

    Graphs run on the CPU, or on CUDA with --provider (some GB more, once); of a plan the graph that it was
    built from. Example: `pipeline serve engines/triton --smoke`
    """
    import os
    import shlex
    from dataclasses import asdict

    from pipeline.ship.fronts import Fronts
    from pipeline.ship.ports import Ports
    from pipeline.ship.triton import page, repository

    if docker:
        print(page.docker(shlex.quote(str(folder.resolve())), repository.read(folder)))
        return
    extras.needs("serve", "pipeline serve")
    repository.read(folder)  # a wrong folder is said before CUDA is asked for
    from pipeline.ship import serve as stage
    from pipeline.ship.triton import wheel
    from pipeline.ship.web.guard import Access

    key = api_key if api_key is not None else os.environ.get("PIPELINE_API_KEY")
    access = Access(host, tuple(allowed_host or ()), key)
    fronts = Fronts(openai_port if openai else None, access, request_timeout)
    graphs_on = arguments.provider(provider, wheel.refusal)
    if not smoke:
        ports = Ports(http_port, grpc_port, metrics_port)
        stage.serve(folder, ports, fronts, log_file, graphs_on)
        return
    checks = stage.smoke(folder, graphs_on)
    failed = sum(not check.passed for check in checks)
    text = f"{len(checks) - failed} checks passed, {failed} failed"
    show_result([asdict(check) for check in checks], as_json, text)
    if failed:
        sys.exit(1)
