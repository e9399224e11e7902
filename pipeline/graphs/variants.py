"""Stage: a base graph + a skip set → a variant graph, by surgery. Cutting reads no weights.

A sublayer is left out by putting, in the place of its residual `Add`, what the `Add` added it to. Then
what nothing reaches is removed; what another layer still uses stays because it is reached. Layers keep their
indices.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, InvariantError

from pipeline import store
from pipeline.graphs import graphfile
from pipeline.graphs.passes.all_logits import AllLogitsPass
from pipeline.graphs.passes.compensate import CompensatePass
from pipeline.graphs.passes.graft import GraftPass
from pipeline.graphs.passes.quantise import QuantisePass
from pipeline.graphs.passes.skip import SkipPass
from pipeline.graphs.passes.static_cache import StaticCachePass
from pipeline.models import compensation, safetensors_index
from pipeline.models.config import Config, read_config
from pipeline.models.sizes import rules_of
from pipeline.store.records import FileDigest, GraphRecord
from pipeline.types import SkipSet, UserError, Variant, is_compensation

log = logging.getLogger(__name__)
LEAST_PLACES = 128
"""Places of a static cache at least, where the context has as many: what `check` plays takes 108."""
_INHERITED = ("contract", "weights", "tokenizer", "tools", "num_layers")
"""Fields of a sidecar that a graph takes over from the one it is derived from."""


def cut(base: Path, skip: SkipSet) -> Path:
    """Writes the variant's graph beside the base graph, or finds it there.

    Raises:
        UserError: the file is no base graph, a layer does not exist, or the graph has an unexpected form.
    """
    record = _base_record(base, skip)
    if not skip:
        return base
    variant = replace(record.as_variant(), skip=skip)
    return _derive(base, record, variant, SkipPass(skip, record.num_layers))


def compensate(base: Path, skip: SkipSet, overlay: Path, form: str) -> Path:
    """Writes the variant with a compensation in the place of what it skips, or finds it there.

    Args:
        base: the base graph, whose norms are read where sublayers are skipped.
        skip: what is left out.
        overlay: safetensors beside the graph (`models/compensation.py`).
        form: name of the compensation; the variant is called `<skip>~<form>`.

    Raises:
        UserError: as `cut`; nothing is skipped, or the overlay is not for this graph and skip set.
    """
    record = _base_record(base, skip)
    if not skip:
        raise UserError(
            "base skips nothing: there is nothing to compensate; name a variant that skips sublayers"
        )
    if not overlay.is_file() or overlay.resolve().parent != base.resolve().parent:
        raise UserError(f"{overlay} is no file beside {base}: graphs read weights in their own folder alone")
    if not is_compensation(form):
        raise UserError(
            f"{form!r:.40} names no compensation; choose bias, linear, matrix, rank16, fold or fold+rank16"
        )
    _refuse_folds(base, record, overlay)
    digest = str(store.weights.state(overlay, full=True).sha256)
    config = read_config(base.parent)
    width = config.get("hidden_size") or config["n_embd"]  # GPT-2 says the latter
    surgery = CompensatePass(skip, record.num_layers, overlay, digest, width)
    variant = replace(record.as_variant(), skip=skip, compensation=form)
    file = FileDigest(file=overlay.name, sha256=digest)
    return _derive(base, record, variant, surgery, {"compensated": file.plain()})


def _refuse_folds(base: Path, record: GraphRecord, overlay: Path) -> None:
    """Refuses changed weights beside a graph that keeps its weights in another form than the checkpoint."""
    names = safetensors_index.read_index([overlay])
    folded = [name for name in names if not compensation.is_map(name)]
    if folded and record.quantisation:
        raise UserError(
            f"{overlay} holds {folded[0]}, into which a sublayer was folded, and the weights of {base} are "
            "quantised; take --compensation linear, bias or a rank"
        )
    if folded and record.contract != "authored":
        raise UserError(
            f"{overlay} holds {folded[0]}, into which a sublayer was folded, and {base} was exported "
            "elsewhere and keeps its weights in another form; compensate it --with bias, linear or a rank"
        )


def quantise(base: Path, weights: Path, quantisation: str) -> Path:
    """Writes the twin of a graph that reads quantised weights, or finds it there; variants are cut from it.

    Args:
        base: an authored graph, neither compensated nor healed.
        weights: the file of its model's quantised weights, beside it (`models/quantisation/files.py`).
        quantisation: its name.

    Raises:
        UserError: the graph has no weights of the checkpoint's own, or not those of the file.
    """
    record = store.graph_sidecar(base)
    variant = record.as_variant()
    own = replace(variant, quantisation=None, adapter=None, compensation=None)
    if record.contract != "authored" or variant != own:
        raise UserError(f"{base} is no authored graph with the checkpoint's own weights; name one that is")
    config, digest = read_config(base.parent), str(store.weights.state(weights, full=True).sha256)
    rules = rules_of(config["model_type"])
    tied = {f"{rules.embedding}.weight": f"{rules.head}.weight"} if config["tie_word_embeddings"] else {}
    surgery = QuantisePass(weights, digest, tied, variant.precision)
    file = FileDigest(file=weights.name, sha256=digest)
    twin = replace(variant, quantisation=quantisation)
    return _derive(base, record, twin, surgery, {"quantised": file.plain()})


def cut_static(graph: Path, max_tokens: int) -> Path:
    """Writes the twin of a graph whose cache has a fixed number of places (`passes/static_cache.py`).

    Args:
        graph: of any variant, compensated and healed ones too.
        max_tokens: places; tokens of prompt and text together.

    Raises:
        UserError: the graph was exported elsewhere, is of this form already, or has no cache; or its model's
            context is shorter.
    """
    record = store.graph_sidecar(graph)
    _refuse_static(graph, record, "name a graph whose cache grows")
    if record.contract != "authored":
        raise UserError(f"{graph} was exported elsewhere: a static cache needs an authored graph")
    refuse_places(max_tokens, read_config(graph.parent))
    variant = replace(record.as_variant(), max_tokens=max_tokens)
    return _derive(graph, record, variant, StaticCachePass(max_tokens))


def refuse_places(max_tokens: int, config: Config) -> None:
    """Refuses a static cache of fewer tokens than `check` plays, or of more than the model's context."""
    context = config.get("max_position_embeddings", LEAST_PLACES)
    least = min(LEAST_PLACES, context)
    if not least <= max_tokens <= context:
        raise UserError(
            f"--max-tokens {max_tokens} is not between {least} and the model's context of {context} tokens"
        )


def _refuse_static(graph: Path, record: GraphRecord, mend: str) -> None:
    """Refuses a twin with a static cache where a graph of the usual form is wanted."""
    if record.max_tokens is not None:
        raise UserError(f"{graph} has a static cache of {record.max_tokens} tokens; {mend}")


def base_of(graph: Path) -> Path:
    """The base graph that a variant was cut from, where its norms and projections are.

    Raises:
        UserError: the graph is of no bare variant, is cut from one itself, or its base is gone.
    """
    record = store.graph_sidecar(graph)
    if record.head == "all":
        twin = store.graph_path(graph.parent, replace(record.as_variant(), head="gather"))
        raise UserError(f"{graph} gives the logits of every position; name its twin {twin.name}")
    _refuse_static(graph, record, "name the variant that it is a twin of")
    if record.compensation or record.adapter:
        raise UserError(f"{graph} is compensated or healed already; name the variant that was cut")
    if not record.skip_set:
        raise UserError(f"{graph} skips nothing: there is nothing to compensate; name a variant that was cut")
    if record.base is None:
        raise UserError(
            f"{graph} has no base: the weights of what it leaves out are gone from its model's files; take a "
            "variant that was cut from the whole model"
        )
    base = graph.parent / record.base.file
    if not base.is_file():
        raise UserError(
            f"{graph} has no base graph beside it, from which its norms are taken; "
            "run `pipeline export` of the whole model"
        )
    return base


def _base_record(base: Path, skip: SkipSet) -> GraphRecord:
    """The sidecar of a base graph that a skip set can be left out of.

    Raises:
        UserError: it is no base graph, or a layer does not exist.
    """
    record = store.graph_sidecar(base)
    variant = record.as_variant()
    _refuse_static(base, record, f"cut variants from base.{variant.precision_name}.onnx")
    if variant.skip or variant.adapter or variant.compensation or variant.head == "all":
        raise UserError(
            f"{base} is not a base graph; "
            f"cut variants from {base.with_name(f'base.{variant.precision_name}.onnx')}"
        )
    skip.within(record.num_layers)
    return record


def cut_all_logits(graph: Path) -> Path:
    """Writes the twin of a graph that gives every position's logits, [B, S, V]: what optimum loads."""
    record = store.graph_sidecar(graph)
    variant = record.as_variant()
    if variant.head == "all" or record.contract != "authored":
        return graph
    return _derive(graph, record, replace(variant, head="all"), AllLogitsPass())


def graft(graph: Path, healed: Path, adapter: str) -> Path:
    """Writes the healed twin of a variant: the tensors that an adapter changed are read from another file.

    Args:
        graph: the variant's graph.
        healed: safetensors beside it: the changed tensors, under the checkpoint's names (`adapters.merge`).
        adapter: its name; the twin is called `<variant>~<adapter>`.

    Raises:
        UserError: the graph was authored elsewhere, or lacks a tensor.
    """
    record = store.graph_sidecar(graph)
    if record.contract != "authored":
        raise UserError(
            f"{graph} was exported elsewhere and keeps its weights in another form; "
            "adapters need an authored graph"
        )
    if record.quantisation:
        twin = store.graph_path(graph.parent, replace(record.as_variant(), quantisation=None))
        raise UserError(
            f"the weights of {graph} are quantised, and adapters change weights; take {twin.name}"
        )
    variant = replace(record.as_variant(), adapter=adapter)
    file = FileDigest(file=healed.name, sha256=str(store.weights.state(healed, full=True).sha256))
    return _derive(graph, record, variant, GraftPass(healed, file.sha256), {"healed": file.plain()})


def _derive(
    source: Path,
    record: GraphRecord,
    variant: Variant,
    surgery: InPlacePass,
    overlays: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the variant that surgery makes of a graph beside it, or finds it there.

    Args:
        source: the graph.
        record: its sidecar.
        variant: what the new graph is.
        surgery: the pass that makes it.
        overlays: `quantised`, `compensated` or `healed`, where the graph reads other files than the source.
    """
    path = store.graph_path(source.parent, variant)
    fields = record.plain()
    wanted = {
        "artefact": "graph",
        **store.records.variant_fields(variant),
        **{key: fields[key] for key in _INHERITED},
        "base": {"file": source.name, "sha256": record.sha256},
        **{key: fields[key] for key in ("quantised", "compensated", "healed")},
        **(overlays or {}),
    }
    with store.lock(source.parent):
        if store.is_current(path, wanted):
            log.info("%s is there and matches; nothing to do", path)
            return path
        model = graphfile.load(source)
        _apply(surgery, model)
        graphfile.save(model, path, {**wanted, "files": fields["files"], "source": fields["source"]})
    return path


def _apply(surgery: InPlacePass, model: ir.Model) -> None:
    """Runs a pass. onnx-ir wraps what its pre- and postconditions raise: a UserError is unwrapped."""
    try:
        surgery(model)
    except InvariantError as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise
