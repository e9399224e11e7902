"""Commands that write graphs."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline import store
from pipeline.cli import arguments, extras, prerequisites
from pipeline.cli.app import GRAPHS, Json, Model, app, artefact_json, show_result
from pipeline.cli.evo_options import Compensated, Generations, Minutes, Start
from pipeline.cli.rule_options import RULES
from pipeline.cli.text_options import Dataset, MeasuredOn
from pipeline.models.quantisation.names import METHODS, GraphPrecision, requested
from pipeline.types import UserError, Variant

if TYPE_CHECKING:
    from pipeline.calib.skip_options import SkipOptions
    from pipeline.models.checkpoint import Checkpoint
    from pipeline.types import SkipSet

log = logging.getLogger(__name__)


@app.command(rich_help_panel=GRAPHS)
def export(
    model: Model = None,
    skip: Annotated[
        str | None,
        typer.Option(
            help="attn, mlp or block with --frac, --count or --layers; or a skip set: attn20-28+mlp25-29."
        ),
    ] = None,
    frac: Annotated[
        float | None, typer.Option(help="Fraction of the layers: ceil(frac · L) of them.")
    ] = None,
    count: Annotated[int | None, typer.Option(help="Number of layers.")] = None,
    layers: Annotated[str | None, typer.Option(help="The layers themselves: 3,7,20-29.")] = None,
    select: Annotated[
        str | None,
        typer.Option(help=f"Rule that picks them, by default last: {', '.join(RULES)}."),
    ] = None,
    set_name: Annotated[
        str | None,
        typer.Option(
            "--set",
            help="Name of a published set, with --select published; --skip may be left out.",
            callback=arguments.not_empty,
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of rules that draw (0).")] = None,
    start: Start = None,
    compensated: Compensated = False,
    minutes: Minutes = None,
    generations: Generations = None,
    compensation: Annotated[
        str | None,
        typer.Option(
            help="With what `pipeline compensate` fitted for this variant: linear, …",
            callback=arguments.not_empty,
        ),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            help="Merge what `pipeline heal` trained for this variant, by its --name.",
            callback=arguments.not_empty,
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            help="fp32 (CPU) or fp16 (engines); with quantised weights int4-fp32, int8-fp16, …; int4 or int8 "
            "alone writes both. int4-fp16 keeps the head in fp16."
        ),
    ] = "fp32",
    block_size: Annotated[
        int | None,
        typer.Option(
            help="Weights that share a scale, of int4 and int8: 32, 64, 128; 64 by default, or 32 where a "
            "GGUF keeps its blocks so."
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help=f"How int4 and int8 round: {', '.join(METHODS)}. gptq loses less and measures on text first."
        ),
    ] = None,
    texts: Annotated[
        list[Path] | None,
        typer.Option(help="That gptq measures on: .txt, or .jsonl with a column `text`; repeat for several."),
    ] = None,
    dataset: Dataset = None,
    samples: Annotated[int | None, typer.Option(help="Sequences that gptq measures on (64).")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens of each (256).")] = None,
    head: Annotated[
        str, typer.Option(help="gather: logits where asked; all: [B, S, V], which optimum loads.")
    ] = "gather",
    cache: Annotated[
        str, typer.Option(help="dynamic: it grows; static: of fixed size, written in place (engines).")
    ] = "dynamic",
    max_tokens: Annotated[
        int | None, typer.Option(help="Tokens that a static cache holds: prompt and text.")
    ] = None,
    from_onnx: Annotated[
        Path | None, typer.Option(help="Folder that `optimum-cli export onnx` made, instead of MODEL.")
    ] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Write the graphs beside a local checkpoint.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Hash the weights' contents into source.json.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Writes the base graph where it is missing, then the variant; prints its path.

    Example: `pipeline export demo --skip mlp --frac 0.25`, and with 4-bit weights `--precision int4`
    """
    from pipeline.calib.evolution.options import EvoOptions
    from pipeline.calib.selectors import ModelStatistics
    from pipeline.calib.skip_options import SkipOptions
    from pipeline.graphs import export as stage
    from pipeline.graphs import variants as surgery
    from pipeline.models import checkpoint, identity
    from pipeline.models.quantisation import gguf_rounding

    precisions = requested(precision, block_size, method)
    measured = MeasuredOn(texts, dataset, samples, length)
    measured.belong_to(precisions[0].weights)
    _refuse_form(head, cache, max_tokens)
    if adapter:
        extras.needs("heal", "pipeline export --adapter")
    evo = EvoOptions(start, compensated, minutes, generations)
    options = SkipOptions(skip, frac, count, layers, select, seed, evo, set_name=set_name, model=model)
    if from_onnx:
        if model or in_place:
            raise UserError("--from-onnx names the model already; leave MODEL and --in-place out")
        if precisions[0].weights:
            raise UserError("graphs of optimum's are not quantised; export the checkpoint itself, as MODEL")
        base = stage.export_from_onnx(from_onnx)
        chosen = options.skip_set(store.graph_sidecar(base).num_layers, ModelStatistics(base.parent))
        graphs = [surgery.cut(base, chosen)]
    else:
        options.prove_published()
        request = _ExportRequest(options, precisions, adapter, compensation, max_tokens, measured)
        source = checkpoint.resolve(arguments.model(model), in_place, request.prove)
        skip_set = request.skip_set(source)
        if precisions[0].weights:
            usual = gguf_rounding.usual_block_size(source, precisions[0].weights)
            precisions = requested(precision, block_size, method, usual)
        how = measured.rounding(source, precisions[0].weights)
        graphs = [stage.export(source, one.activations, skip_set, one.weights, how) for one in precisions]
        _say_dropped(source, graphs[0])
        if verify:
            identity.verify(source)
    _warn_of_tokenizer(graphs[0].parent)
    paths = [_of_form(path, compensation, adapter, head, max_tokens) for path in graphs]
    written = [artefact_json(path) for path in paths]
    show_result(written if len(written) > 1 else written[0], as_json, "\n".join(map(str, paths)))


def _of_form(
    path: Path, compensation: str | None, adapter: str | None, head: str, max_tokens: int | None
) -> Path:
    """A bare variant's twin: compensated, healed, of another form."""
    from pipeline.graphs import variants as surgery

    if compensation:
        path = prerequisites.compensated(path, compensation)
    if adapter:
        path = prerequisites.healed(path, adapter)
    if head == "all":
        path = surgery.cut_all_logits(path)
    return path if max_tokens is None else surgery.cut_static(path, max_tokens)


def _refuse_form(head: str, cache: str, max_tokens: int | None) -> None:
    """Refuses forms of graphs that there are not."""
    if head not in ("gather", "all"):
        raise UserError(f"--head is gather or all, not {head!r:.40}")
    if cache not in ("dynamic", "static"):
        raise UserError(f"--cache is dynamic or static, not {cache!r:.40}")
    if (cache == "static") != (max_tokens is not None):
        raise UserError("--cache static and --max-tokens N, the tokens that it holds, go together")


@dataclass(frozen=True, slots=True)
class _ExportRequest:
    """What `export` is to write of a checkpoint.

    Attributes:
        options: which sublayers go.
        precisions: of the graphs.
        adapter: that is merged into it.
        compensation: on which the adapter was trained.
        max_tokens: of a static cache.
        measured: the text that weights are rounded on.
    """

    options: SkipOptions
    precisions: list[GraphPrecision]
    adapter: str | None
    compensation: str | None
    max_tokens: int | None
    measured: MeasuredOn

    def skip_set(self, source: Checkpoint) -> SkipSet:
        """What is left out: what --skip says, else what config.json drops, as LLM-Drop writes it."""
        from pipeline.calib.selectors import ModelStatistics
        from pipeline.graphs import export as stage
        from pipeline.models import drop_lists

        chosen = self.options.skip_set(stage.num_layers(source.config), ModelStatistics(source.folder))
        dropped = drop_lists.of(source)
        return dropped if self.options.is_bare else chosen

    def prove(self, source: Checkpoint) -> None:
        """Refuses what cannot be written, before the checkpoint is copied."""
        from pipeline.calib import adapters
        from pipeline.graphs import export as stage
        from pipeline.graphs import variants as surgery

        if self.adapter and self.precisions[0].weights:
            raise UserError(
                "--adapter changes weights, and this precision's are quantised; merge it with --precision "
                f"{self.precisions[0].activations}"
            )
        if self.max_tokens is not None:
            surgery.refuse_places(self.max_tokens, source.config)
        self.measured.rounding(source, self.precisions[0].weights)  # refuses a text that is none
        skip = self.skip_set(source)
        for one in self.precisions:
            stage.prove(source, one.activations, skip, one.weights)
        if self.adapter:
            variant = Variant(source.model, skip, compensation=self.compensation)
            adapters.read(source, variant, self.adapter)


def _say_dropped(source: Checkpoint, graph: Path) -> None:
    """Says what was written of a model whose own files leave sublayers out."""
    from pipeline.models import drop_lists

    written, dropped = store.graph_sidecar(graph), drop_lists.of(source)
    is_gguf = source.source.kind == "gguf"
    file = source.origin if is_gguf else source.folder / "config.json"
    if dropped and dropped != written.skip_set:
        log.info("%s drops %s; --skip says %s, and that is written", file, dropped.name, written.variant)
    elif dropped:
        whole = "--skip base takes it whole" if written.base else "its weights hold no base"
        log.info("%s drops %s, and so does the graph; %s", file, dropped.name, whole)


def _warn_of_tokenizer(folder: Path) -> None:
    """Says at once what later commands would stumble over."""
    from pipeline.models import tokenizer

    if concern := tokenizer.concern(folder):
        log.warning("warning: %s", concern)


@app.command(rich_help_panel=GRAPHS)
def merge(
    graphs: Annotated[list[Path], typer.Argument(help="Graphs of one base.")], as_json: Json = False
) -> None:
    """Merges variants of one base into one graph that computes what they share once.

    Example: `pipeline merge graphs/*/base.fp32.onnx graphs/*/mlp22-29.fp32.onnx`
    """
    from pipeline.graphs import merge as stage

    path = stage.merge(graphs)
    show_result(artefact_json(path), as_json, str(path))
