"""Stage: a checkpoint → its base graph or a variant; or a folder that optimum exported → its base graph."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import onnx_ir as ir

from pipeline import store
from pipeline.graphs import architectures, graphfile, variants
from pipeline.graphs.architectures._builder import LacksWeightsError
from pipeline.models import identity, tensor_names
from pipeline.models.checkpoint import Checkpoint, open_checkpoint
from pipeline.models.checkpoint_files import SMALL_FILES, copy_file
from pipeline.models.config import Config, read_config
from pipeline.models.quantisation import files as quantised
from pipeline.models.quantisation.names import Quantisation
from pipeline.models.quantisation.rounding import Rounding
from pipeline.store.records import CheckpointSource
from pipeline.types import BASE, Precision, SkipSet, UserError, Variant, first_line

log = logging.getLogger(__name__)
T = TypeVar("T")


def export(
    checkpoint: Checkpoint,
    precision: Precision,
    skip: SkipSet,
    quantisation: Quantisation | None = None,
    rounding: Rounding | None = None,
) -> Path:
    """A variant's graph beside the weights: cut from the base, which is written where it is missing.

    Where weights of sublayers are gone from the files, as LLM-Drop may leave them, there is no base: a
    variant that leaves those out is authored itself, and its sidecar names no base.

    Args:
        checkpoint: of the model.
        precision: of activations.
        skip: what is left out.
        quantisation: of the weights, which are quantised once for all variants.
        rounding: how, where that is not to nearest.

    Raises:
        UserError: as `export_base`, `files.ensure` and `variants.cut`.
    """

    def authored(part: SkipSet) -> tuple[SkipSet, Path]:
        return part, _export(checkpoint, precision, part)

    if quantisation:
        quantised.refuse_blocks(checkpoint, quantisation)
    part, path = _of_base_or_itself(checkpoint, skip, authored)
    if quantisation:
        weights = quantised.ensure(checkpoint, quantisation, rounding)
        path = variants.quantise(path, weights, quantisation.name)
    return path if part == skip else variants.cut(path, skip)


def prove(
    checkpoint: Checkpoint, precision: Precision, skip: SkipSet, quantisation: Quantisation | None = None
) -> None:
    """Refuses what `export` would refuse, wherever the checkpoint lies, and writes nothing.

    Raises:
        UserError: as `export`.
    """
    skip.within(num_layers(checkpoint.config))
    if quantisation:
        quantised.refuse_blocks(checkpoint, quantisation)
    _of_base_or_itself(
        checkpoint, skip, lambda part: architectures.decoder(checkpoint, precision, part).author()
    )


def _of_base_or_itself(checkpoint: Checkpoint, skip: SkipSet, author: Callable[[SkipSet], T]) -> T:
    """What is authored for a variant: the base that it is cut from, or itself where weights of that lack."""
    is_elsewhere = checkpoint.source.kind == "onnx"
    if is_elsewhere or not tensor_names.gone(checkpoint.tensors, num_layers(checkpoint.config)):
        try:
            return author(BASE)
        except LacksWeightsError:
            if not skip:
                raise
    return author(skip)


def export_base(checkpoint: Checkpoint, precision: Precision = "fp32") -> Path:
    """Writes `base.<precision>.onnx` beside the checkpoint's weights, or finds it there.

    Raises:
        UserError: the checkpoint cannot be authored; nothing is written then.
    """
    return _export(checkpoint, precision, BASE)


def _export(checkpoint: Checkpoint, precision: Precision, skip: SkipSet) -> Path:
    """Authors a graph beside the checkpoint's weights, or finds it there."""
    variant = Variant(checkpoint.model, skip, precision)
    path = store.graph_path(checkpoint.folder, variant)
    with store.lock(checkpoint.folder, make=False):
        if not (checkpoint.folder / "config.json").is_file():  # another process could not use its copy
            raise UserError(f"{checkpoint.folder} was removed meanwhile; run the command again")
        store.sweep_temporaries(checkpoint.folder)
        if checkpoint.source.kind == "onnx":
            return _exported_elsewhere(path, precision)
        wanted = {
            "artefact": "graph",
            **store.records.variant_fields(variant),
            "contract": "authored",
            "weights": checkpoint.identity,
            "config": store.sha256(checkpoint.folder / "config.json"),
            "tokenizer": identity.tokenizer_digest(checkpoint.folder),
            "tools": graphfile.tools(),
        }
        if store.is_current(path, wanted):
            log.info("%s is there and matches; nothing to do", path)
            return path
        model = architectures.decoder(checkpoint, precision, skip).author()
        architectures.warn_of_code(checkpoint)
        layers = checkpoint.config["num_hidden_layers"]
        files = [file.plain() for file in store.weights.states(checkpoint.files)]
        source = checkpoint.source.replaced(files=(), copies=()).plain()
        fields = {**wanted, "files": files, "source": source, "num_layers": layers}
        graphfile.save(model, path, fields)
    return path


def _exported_elsewhere(path: Path, precision: Precision) -> Path:
    """The base graph of an export of optimum's, after a check that its data is what it came with."""
    if not path.is_file():
        raise UserError(
            f"{path.parent} holds a graph exported elsewhere, and not in {precision}; "
            "export it so with optimum"
        )
    store.graph_sidecar(path)
    return path


def export_from_onnx(folder: Path, into: Path | None = None, origin: str | None = None) -> Path:
    """Takes over a graph that `optimum-cli export onnx` made; its contract stays optimum's.

    Args:
        folder: holds model.onnx, its data file and config.json.
        into: where to put it; graphs/<folder's name> by default.
        origin: what source.json says of where it came from; the folder by default.

    Raises:
        UserError: no such export, or the graph has no cache.
    """
    source = folder / "model.onnx"
    model = _load_export(folder, source)
    target = into or store.Project().graphs(folder.resolve().name)
    variant = Variant(target.name, BASE, _precision(model))
    path = store.graph_path(target, variant)
    data = [folder / name for name in graphfile.data_files(model)]
    with store.lock(target):
        store.sweep_temporaries(target)
        _refuse_other_kind(target)
        weights = store.weights.identity(store.weights.states([source, *data], full=True))
        wanted = {
            "artefact": "graph",
            **store.records.variant_fields(variant),
            "contract": "optimum",
            "weights": weights,
            "source_sha256": store.sha256(source),
            "tokenizer": identity.tokenizer_digest(folder),
            "tools": graphfile.tools(),
        }
        origin = origin or store.relative(folder, to=target / store.SOURCE)
        record = CheckpointSource(kind="onnx", origin=origin, weights=weights)
        if store.is_current(path, wanted):
            store.write_json(target / store.SOURCE, record.plain())
            return path
        _copy_export(data, folder, target, record)
        files = [file.plain() for file in store.weights.states(target / file.name for file in data)]
        graphfile.save(model, path, {**wanted, "files": files, "num_layers": num_layers(read_config(folder))})
    open_checkpoint(target)
    return path


def _refuse_other_kind(target: Path) -> None:
    """Refuses to put an export of optimum's into the folder of a checkpoint."""
    record = target / store.SOURCE
    if record.is_file() and (source := store.records.read(CheckpointSource, record)).kind != "onnx":
        raise UserError(f"{target} already holds a model from {source.origin}; rename the export's folder")


def _copy_export(data: list[Path], folder: Path, target: Path, source: CheckpointSource) -> None:
    """Copies an export's files, its data, config and tokenizer, and then writes source.json."""
    for file in [*data, *(folder / name for name in SMALL_FILES if (folder / name).is_file())]:
        copy_file(file, target / file.name)
    store.write_json(target / store.SOURCE, source.plain())


def _load_export(folder: Path, source: Path) -> ir.Model:
    """The graph of an export, after a check that it is one with a cache."""
    if not source.is_file() or not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} has no model.onnx and config.json; make them with "
            "`optimum-cli export onnx --model ID --task text-generation-with-past FOLDER`"
        )
    model = graphfile.load(source)
    if not any(graphfile.is_cache(value) for value in model.graph.inputs):
        raise UserError(
            f"{source} has no past_key_values inputs; export it with --task text-generation-with-past"
        )
    return model


def optimum_base(folder: Path) -> Path:
    """The graph that optimum exports of the same checkpoint (traced, fp32), for comparison; exported once.

    Args:
        folder: of the checkpoint; the export is kept in its subfolder optimum/.

    Raises:
        UserError: optimum is not installed, or cannot export this checkpoint.
    """
    target, contents = folder / "optimum", open_checkpoint(folder).contents
    ready = store.graph_path(target, Variant(target.name, BASE, "fp32"))
    record = store.records.read_if_valid(CheckpointSource, target / store.SOURCE)
    if record and record.origin == contents and store.is_current(ready, {"contract": "optimum"}):
        return ready
    log.info("exporting %s with optimum, for comparison (once; takes a minute or more)", folder)
    return _traced(folder, target, contents)


def _traced(folder: Path, target: Path, origin: str) -> Path:
    """Lets optimum export the checkpoint in a folder."""
    try:
        from optimum.exporters.onnx import main_export

        from pipeline.models import pretrained
    except ModuleNotFoundError as error:
        raise UserError(
            f"a graph of optimum's needs optimum ({error}); run `pip install 'skip-pipeline[optimum]'` "
            "in an environment of its own"
        ) from None
    with (
        tempfile.TemporaryDirectory(prefix=".optimum.", dir=folder) as temporary,
        pretrained.rewritten(folder) as source,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # the tracer warns of transformers' own code
        try:
            main_export(
                str(source),
                temporary,
                task="text-generation-with-past",
                dtype="fp32",
                device="cpu",
                do_validation=False,
            )
        except (ValueError, KeyError, RuntimeError) as error:
            raise UserError(f"optimum cannot export {folder}: {first_line(error)}") from None
        return export_from_onnx(Path(temporary), target, origin)


def _precision(model: ir.Model) -> Precision:
    """The precision of the cache, which is the graph's."""
    dtype = next(value.dtype for value in model.graph.inputs if graphfile.is_cache(value))
    names: dict[ir.DataType | None, Precision] = {ir.DataType.FLOAT: "fp32", ir.DataType.FLOAT16: "fp16"}
    if dtype not in names:
        raise UserError(f"a graph in {dtype} is not supported; export it in fp32 or fp16")
    return names[dtype]


def num_layers(config: Config) -> int:
    """L of a config.json.

    Raises:
        UserError: it does not say.
    """
    for key in ("num_hidden_layers", "n_layer", "num_layers"):
        if isinstance(config.get(key), int):
            return int(config[key])
    raise UserError("config.json does not say how many layers the model has (num_hidden_layers)")
