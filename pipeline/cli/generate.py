"""The command that continues a text."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated

import typer

from pipeline import store
from pipeline.cli import arguments
from pipeline.cli.app import DELIVER, DeviceMemory, Json, ProviderOption, app, show_result
from pipeline.store.records import MergedRecord
from pipeline.types import UserError


def _refuse_merged(artefact: Path) -> None:
    """Refuses a graph of several variants: whose text it is, nothing would say.

    Raises:
        UserError: names the graphs that it was merged from.
    """
    record = store.sidecar(artefact)
    if isinstance(record, MergedRecord):
        graphs = (store.merged_from(artefact, name, record.precision_name) for name in record.variants)
        names = ", ".join(shlex.quote(str(graph)) for graph in graphs)
        raise UserError(f"{artefact} holds several variants; continue the text with one of them: {names}")
    store.variant(artefact, quick=True)  # the engine of a merged graph is refused, too


@app.command(rich_help_panel=DELIVER)
def generate(
    artefact: Annotated[Path, typer.Argument(help="Graph or engine.")],
    prompt: Annotated[str, typer.Argument(help="The text to continue; with --chat what the user says.")],
    max_tokens: Annotated[int, typer.Option(help="At most so many new tokens.")] = 32,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")
    ] = False,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Draw from the k likeliest; 0 is all.")] = 0,
    top_p: Annotated[
        float, typer.Option(help="Draw from the likeliest that together have this probability.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Of the draw.")] = None,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 avoids what was said.")] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="Ends the text; repeat for several.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the text as it comes.")] = False,
    provider: ProviderOption = "cpu",
    device_memory: DeviceMemory = None,
    as_json: Json = False,
) -> None:
    """Continues a text, with the code that the shipped Triton model runs.

    Example: `pipeline generate graphs/*/base.fp32.onnx "The capital of France is" --max-tokens 12`
    """
    arguments.without_torch()
    from pipeline.engines import opening
    from pipeline.evals import passed
    from pipeline.models import tokenizer
    from pipeline.runtime.generation import alone
    from pipeline.runtime.generation.sampling import Sampling
    from pipeline.runtime.generation.writer import Piece

    graphs_on = arguments.provider(provider)
    arguments.bound_device_memory(device_memory, [graphs_on], [artefact])
    sampling = Sampling(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        repetition_penalty=repetition_penalty,
        stop=tuple(stop or ()),
    )
    _refuse_merged(artefact)
    prompts = tokenizer.prompts(store.checkpoint_folder(artefact))
    ids = prompts.chat([{"role": "user", "content": prompt}]) if chat else prompts.encode(prompt)
    before, times = "" if chat else prompt, list[float]()

    def show(piece: Piece) -> None:
        nonlocal before
        if piece.token is not None:
            times.append(time.perf_counter())
        if stream and not as_json:
            print(before + piece.text, end="", flush=True)
        before = ""

    with opening.open_runner(artefact, provider=graphs_on) as runner:
        if not runner.has_cache and not passed.has_no_attention(artefact):
            raise passed.no_cache(artefact)  # the second token would not know of the first
        start = time.perf_counter()
        pieces = alone.pieces(runner, prompts, ids, sampling, show)
    text = "".join(piece.text for piece in pieces)
    tokens = [piece.token for piece in pieces if piece.token is not None]
    record = {
        "prompt": prompt,
        "text": text,
        "tokens": tokens,
        "prompt_tokens": len(ids),
        "finish_reason": pieces[-1].finish,
        "first_ms": (times[0] - start) * 1e3 if times else None,
        "ms_a_token": (times[-1] - times[0]) / (len(times) - 1) * 1e3 if len(times) > 1 else None,
    }
    show_result(record, as_json, "" if stream else text if chat else prompt + text)
