"""Commands that put a variant to work: one text, a Triton repository, the server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline import arguments, store
from pipeline.cli.app import Json, app, show_result
from pipeline.types import UserError


@app.command()
def generate(
    artefact: Annotated[Path, typer.Argument(help="Graph or engine.")],
    prompt: Annotated[str, typer.Argument(help="The text to go on with; with --chat what the user says.")],
    max_tokens: Annotated[int, typer.Option(help="At most so many new tokens.")] = 32,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")] = False,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Draw from the k likeliest; 0 is all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest that together have this probability.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Of the draw.")] = None,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 avoids what was said.")] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="Ends the text; repeat for several.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the text as it comes.")] = False,
    provider: Annotated[str, typer.Option(help="Of ONNX Runtime: cpu or cuda.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Goes on with a text, with the code that the shipped Triton model runs.

    Example: `pipeline generate graphs/*/base.fp32.onnx "The capital of France is" --max-tokens 12`
    """
    arguments.without_torch()
    from pipeline import backends, texts
    from pipeline.generation import alone
    from pipeline.generation.sampling import Sampling
    from pipeline.generation.writer import Piece

    if provider not in ("cpu", "cuda"):
        raise UserError(f"--provider is cpu or cuda, not {provider}")
    sampling = Sampling(
        max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed,
        repetition_penalty=repetition_penalty, stop=tuple(stop or ()),
    )  # fmt: skip
    store.read_sidecar(artefact)
    prompts = texts.prompts(store.checkpoint_folder(artefact))
    ids = prompts.chat([{"role": "user", "content": prompt}]) if chat else prompts.encode(prompt)
    before = "" if chat else prompt

    def show(piece: Piece) -> None:
        nonlocal before
        if stream and not as_json:
            print(before + piece.text, end="", flush=True)
        before = ""

    with backends.open_runner(artefact, provider=provider) as runner:
        pieces = alone.pieces(runner, prompts, ids, sampling, show)
    text = "".join(piece.text for piece in pieces)
    tokens = [piece.token for piece in pieces if piece.token is not None]
    record = {"prompt": prompt, "text": text, "tokens": tokens, "prompt_tokens": len(ids), "finish_reason": pieces[-1].finish}
    show_result(record, as_json, "" if stream else text if chat else prompt + text)


@app.command()
def ship(
    artefacts: Annotated[list[Path], typer.Argument(help="Graphs and engines that have passed their check.")],
    to: Annotated[tuple[str, Path], typer.Option(help="triton, and the folder of the model repository.", metavar="triton DIR")],
    name: Annotated[str | None, typer.Option(help="Of the model; of several the beginning of their names.")] = None,
    rows: Annotated[int, typer.Option(help="Requests side by side at most.")] = 16,
    cache_tokens: Annotated[int, typer.Option(help="Tokens of keys and values at most, padding included.")] = 16_384,
    queue: Annotated[int, typer.Option(help="Requests that wait at most; one more gets an error.")] = 128,
    unchecked: Annotated[bool, typer.Option("--unchecked", help="Also what has passed no check; it is recorded.")] = False,
    as_json: Json = False,
) -> None:
    """Writes a Triton model repository: each variant as NAME (tensors) and NAME_generate (text, streamed).

    Example: `pipeline ship graphs/*/base.fp32.onnx graphs/*/attn22-29.fp32.onnx --to triton engines/triton`
    """
    arguments.without_torch()
    from pipeline import deploy as stage

    if to[0] != "triton":
        raise UserError(f"--to takes triton and a folder, not {to[0]!r}")
    with arguments.busy(f"shipping {len(artefacts)} artefacts"):
        manifest = stage.ship(artefacts, to[1], name, unchecked, stage.Settings(rows, cache_tokens, queue))
    show_result(manifest, as_json, f"{stage.described(manifest)}\n{to[1]}")


@app.command()
def serve(
    folder: Annotated[Path, typer.Argument(help="A model repository that `pipeline ship` wrote.")],
    smoke: Annotated[bool, typer.Option("--smoke", help="Start, run every check, stop; exit 1 where one fails.")] = False,
    openai: Annotated[bool, typer.Option("--openai", help="Also an OpenAI-compatible front.")] = False,
    docker: Annotated[bool, typer.Option("--docker", help="Only print the command for a machine with a GPU.")] = False,
    http_port: Annotated[int, typer.Option(help="0 picks a free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="0 picks a free one.")] = 8001,
    metrics_port: Annotated[int, typer.Option(help="0 picks a free one.")] = 8002,
    openai_port: Annotated[int, typer.Option(help="0 picks a free one.")] = 9000,
    log_file: Annotated[Path | None, typer.Option(help="Keep Triton's own output here.")] = None,
    as_json: Json = False,
) -> None:
    """Starts the real Triton server on this machine, on the CPU; Ctrl-C stops it. Its first start fetches the server (400 MB).

    Example: `pipeline serve engines/triton --smoke`
    """
    from dataclasses import asdict

    from pipeline import serve as stage
    from pipeline.triton import page, repository
    from pipeline.triton.server import Ports

    if docker:
        print(page.docker(str(folder.resolve()), repository.read(folder)))
        return
    if not smoke:
        stage.serve(folder, Ports(http_port, grpc_port, metrics_port), openai_port if openai else None, log_file)
        return
    found = stage.smoke(folder)
    bad = sum(not check.passed for check in found)
    show_result([asdict(check) for check in found], as_json, f"{len(found) - bad} checks passed, {bad} failed")
    sys.exit(1 if bad else 0)
