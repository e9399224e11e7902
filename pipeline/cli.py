"""The command. A command is a dozen lines: parse, call its stage, print. Each imports its stage inside the function."""

from __future__ import annotations

import errno
import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline import arguments, chains, store
from pipeline.types import UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Depth-pruned LLM deployment: export, skip, check, build, bench.\n\n"
    "With no argument a command takes the model from PIPELINE_MODEL, else the only one under graphs/, else `demo`, "
    "and every artefact of it that it can use; it says so on stderr.",
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Paths = Annotated[list[Path] | None, typer.Argument(help="Graphs (.onnx) or engines (.plan); by default all of the model's.")]


def main() -> None:
    """The entry point: 0 done, 1 a check failed, 2 wrong input, 130 interrupted."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("onnx_ir", "httpx", "huggingface_hub", "transformers", "optimum", "torch"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        app()
    except UserError as error:
        sys.exit(_fail(str(error)))
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        where = f" at {error.filename}" if error.filename else ""
        sys.exit(
            _fail(f"cannot write{where}: {error.strerror}; free some space or change the folder, then run the command again")
        )


def _fail(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _print(data: Any, as_json: bool, text: str | None = None) -> None:
    print(json.dumps(data, indent=1, default=str) if as_json or text is None else text)


@app.command()
def export(
    model: Annotated[
        str | None, typer.Argument(help="HF id, local folder, .gguf file, `demo`, or a model under graphs/.")
    ] = None,
    skip: Annotated[
        str | None,
        typer.Option(help="attn, mlp or block with --frac, --count or --layers; or a whole skip set: attn20-28+mlp25-29."),
    ] = None,
    frac: Annotated[float | None, typer.Option(help="Fraction of the layers: ceil(frac · L) of them.")] = None,
    count: Annotated[int | None, typer.Option(help="Number of layers.")] = None,
    layers: Annotated[str | None, typer.Option(help="The layers themselves: 3,7,20-29.")] = None,
    select: Annotated[str | None, typer.Option(help="Rule that picks them: last (default), last-but-final.")] = None,
    precision: Annotated[str, typer.Option(help="fp32 (CPU) or fp16 (engines).")] = "fp32",
    head: Annotated[str, typer.Option(help="gather: logits where asked; all: [B, S, V], which optimum loads.")] = "gather",
    from_onnx: Annotated[
        Path | None, typer.Option(help="Folder that `optimum-cli export onnx` made, instead of MODEL.")
    ] = None,
    in_place: Annotated[bool, typer.Option("--in-place", help="Write the graphs beside a local checkpoint.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Hash the weights' contents into source.json.")] = False,
    as_json: Json = False,
) -> None:
    """Writes the base graph where it is missing, then the variant; prints its path.

    Example: `pipeline export demo --skip mlp --frac 0.25`
    """
    from pipeline import checkpoint, selectors, types
    from pipeline import export as stage
    from pipeline import skip as surgery

    if precision not in types.PRECISIONS or head not in ("gather", "all"):
        raise UserError(f"--precision is fp32 or fp16 and --head is gather or all, not {precision} and {head}")
    if from_onnx:
        if model or in_place:
            raise UserError("--from-onnx names the model already; leave MODEL and --in-place out")
        base = stage.export_from_onnx(from_onnx)
    else:
        found = checkpoint.resolve(arguments.model(model), in_place)
        chosen = selectors.skip_set(skip, frac, count, layers, select, stage.num_layers(found.config))
        base = stage.export_base(found, "fp16" if precision == "fp16" else "fp32")
        if verify:
            checkpoint.verify(found)
    if from_onnx:
        chosen = selectors.skip_set(skip, frac, count, layers, select, store.read_sidecar(base)["num_layers"])
    path = surgery.cut(base, chosen)
    if head == "all":
        path = surgery.cut_all_logits(path)
    _print({"path": str(path), **store.read_sidecar(path)}, as_json, str(path))


@app.command()
def merge(graphs: Annotated[list[Path], typer.Argument(help="Graphs of one base.")], as_json: Json = False) -> None:
    """Merges variants of one base into one graph that computes what they share once.

    Example: `pipeline merge graphs/*/base.fp32.onnx graphs/*/mlp22-29.fp32.onnx`
    """
    from pipeline import merge as stage

    path = stage.merge(graphs)
    _print({"path": str(path), **store.read_sidecar(path)}, as_json, str(path))


@app.command()
def check(
    paths: Paths = None,
    localize: Annotated[bool, typer.Option("--localize", help="Name the first sublayer that diverges.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Check again what has passed.")] = False,
    reference: Annotated[Path | None, typer.Option(help="Folder of the checkpoint, for graphs exported elsewhere.")] = None,
    as_json: Json = False,
) -> None:
    """Runs artefacts beside PyTorch, with Polygraphy; exit 1 where one fails.

    Example: `pipeline check graphs/*/mlp22-29.fp32.onnx`
    """
    from pipeline import compare as stage

    results = []
    for path in arguments.artefacts(paths, engines=chains.has_gpu()):
        with arguments.busy(f"checking {path}"):
            results.append(stage.check(path, localize=localize, force=force, reference=reference))
    _print([result.record() for result in results], as_json, "\n".join(result.summary() for result in results))
    if not all(result.passed for result in results):
        raise typer.Exit(1)


@app.command("build-engine")
def build_engine(
    graphs: Annotated[list[Path] | None, typer.Argument(help="Graphs; by default all of the model's.")] = None,
    backend: Annotated[str, typer.Option(help="tensorrt-rtx (builds on a CPU) or tensorrt.")] = "tensorrt-rtx",
    target: Annotated[
        list[str] | None, typer.Option(help="sm75, sm80, sm86, sm89, sm120 …; repeat for several in one plan.")
    ] = None,
    batch: Annotated[str, typer.Option(help="min,opt,max")] = "1,1,8",
    length: Annotated[str, typer.Option(help="New tokens: min,opt,max")] = "1,100,2048",
    past: Annotated[str, typer.Option(help="Cached tokens: min,opt,max")] = "0,100,2048",
    strip_weights: Annotated[bool, typer.Option("--strip-weights", help="Leave the weights out; refit at load (GPU).")] = False,
    keep_precision: Annotated[bool, typer.Option("--keep-precision", help="Build fp32 graphs as they are.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Build again what is there and matches.")] = False,
    as_json: Json = False,
) -> None:
    """Builds TensorRT engines; an fp32 graph's fp16 twin is cut first.

    Example: `pipeline build-engine graphs/*/attn19-28.fp16.onnx --target sm80`
    """
    from pipeline import build as stage
    from pipeline.backends import tensorrt

    tensorrt.library(backend)  # no twin is cut for a backend that is not there
    ranges: Any = {
        "batch": arguments.triple(batch, "--batch"),
        "length": arguments.triple(length, "--length"),
        "past": arguments.triple(past, "--past"),
    }
    taken = arguments.artefacts(graphs)
    twins = taken if keep_precision else list(dict.fromkeys(chains.fp16_twin(path) for path in taken))
    flags: Any = {"strip_weights": strip_weights, "keep_precision": keep_precision, "force": force}
    built = []
    for path in twins:
        with arguments.busy(f"building {path}"):
            built.append(stage.build(path, backend=backend, targets=tuple(target or ()), **flags, **ranges))
    _print([{"path": str(p), **store.read_sidecar(p)} for p in built], as_json, "\n".join(str(p) for p in built))


@app.command()
def bench(
    paths: Paths = None,
    sequences: Annotated[int, typer.Option(help="Sequences of each length.")] = 1000,
    lengths: Annotated[str, typer.Option(help="Input lengths in tokens.")] = "50,100",
    batch: Annotated[int, typer.Option(help="Sequences at once.")] = 1,
    decode: Annotated[bool, typer.Option("--decode", help="Time one further token on a cache of that length.")] = False,
    compare: Annotated[str | None, typer.Option(help="torch, optimum: time these too, in the same interleaved run.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 is one a core.")] = 0,
    unchecked: Annotated[bool, typer.Option("--unchecked", help="Measure what has passed no check, and record that.")] = False,
    as_json: Json = False,
) -> None:
    """The papers' measurement: the time to predict 1 token for each of 1000 sequences, interleaved with base.

    What has not been checked is checked first. Example: `pipeline bench graphs/*/mlp22-29.fp32.onnx --sequences 100`
    """
    from pipeline import bench as stage

    taken = arguments.artefacts(paths, engines=chains.has_gpu(), precision="fp32")
    others = tuple(part for part in (compare or "").split(",") if part)
    report = stage.bench(
        chains.checked(taken, unchecked),
        sequences=sequences,
        lengths=tuple(arguments.numbers(lengths, "--lengths")),
        batch=batch,
        decode=decode,
        compare=others,
        optimum_graphs=chains.optimum_twins(taken) if "optimum" in others else {},
        threads=threads,
        unchecked=unchecked,
    )
    if as_json:
        _print(report.record(), True)
    else:
        from rich.console import Console

        Console(width=max(Console().width, 150)).print(stage.table(report))  # a narrow pipe would lose the numbers


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
    _print({"prompt": prompt, "text": text, "tokens": tokens}, as_json, prompt + text)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """What exists: models, graphs, engines, and whether each has passed its check.

    Example: `pipeline list --json`
    """
    from pipeline import show as stage

    found = stage.inventory()
    _print(found, as_json, stage.inventory_text(found))


@app.command()
def show(path: Annotated[Path, typer.Argument(help="Graph or engine.")], as_json: Json = False) -> None:
    """One artefact whole: what is left out, what that saves, and its skip set in the forms other tools take.

    Example: `pipeline show graphs/*/attn22-29.fp32.onnx`
    """
    from pipeline import show as stage

    described = stage.describe(path)
    _print(described, as_json, stage.describe_text(described))


@app.command()
def doctor(as_json: Json = False) -> None:
    """What this machine can run, what is missing, and the command that adds it.

    Example: `pipeline doctor`
    """
    from pipeline import doctor as stage

    found = stage.examine()
    _print(found, as_json, stage.text(found))


if __name__ == "__main__":
    main()
