"""A checkpoint as transformers' model, proved to be what its files say: the one place that loads one.

transformers draws a tensor that it misses at random, passes over one that it does not know, and takes a
default for a key in another version's form, each with a log line at most. Here each of them is an error.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig

from pipeline.models import config as configs
from pipeline.models import drop_lists, safetensors_index, tensor_use, unusable, weight_files
from pipeline.models import qwen as _qwen  # noqa: F401 - transformers knows its classes from now on
from pipeline.models.config import Config, read_config
from pipeline.models.rope import AUTHORED, local_rope, rope
from pipeline.models.sizes import rules_of
from pipeline.models.tensor_names import is_left_out, is_table
from pipeline.types import BASE, SkipSet, TensorSlice, UserError, first_line, shown


def load(folder: Path, skip: SkipSet = BASE, **options: Any) -> Any:
    """The causal model of a checkpoint, in evaluation mode.

    Args:
        folder: config.json and safetensors; code that comes with a checkpoint is never run.
        skip: sublayers that will not be run, whose tensors may be missing.
        options: of from_pretrained (dtype, attention kernel, quantisation).

    Raises:
        UserError: no checkpoint there, a tensor that is missing or that nothing uses, or a model that differs
            from config.json.
    """
    config, file = read_config(folder), folder / "config.json"
    if config.get("quantization_config"):
        raise UserError(f"{file}: the weights are quantised; take the model that they were quantised from")
    tensors, model_config = _tensors(folder), transformers_config(config, file)
    model, report = _from_pretrained(folder, model_config, options)
    model.train(False)
    _prove_tensors(report, config, folder, skip)
    if model.config.tie_word_embeddings:
        tensor_use.refuse_trained_head(folder, tensors, rules_of(config.get("model_type")))
    if configs.is_known(config.get("model_type")):
        _prove_config(model, config, file)
        _prove_rope(model, config, file)
    return model


def _from_pretrained(
    folder: Path, config: PretrainedConfig, options: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """(the model, what transformers tells of its tensors)."""
    # Version 5 shows one for every model that it loads.
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if options.get("attn_implementation") == "sdpa" and not _has_sdpa(config):
        options = {**options, "attn_implementation": "eager"}
    try:
        with _without_report():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused by name
                **options,
            )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{folder} holds no checkpoint that transformers can load ({first_line(error)}); "
            "check needs one to compare with"
        ) from None
    model, report = loaded
    return model, report


@contextmanager
def _without_report() -> Iterator[None]:
    """Keeps transformers from printing its table of tensors that are missing.

    Those of skipped sublayers may be; every other is an error here.
    """
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)


def _has_sdpa(config: PretrainedConfig) -> bool:
    """Whether the model takes PyTorch's fused attention: Gemma 2, soft-capped, does not in version 5."""
    form: Any = AutoModelForCausalLM._model_mapping.get(type(config), None)
    return bool(getattr(form, "_supports_sdpa", True))


def _tensors(folder: Path) -> dict[str, TensorSlice]:
    """The tensors that transformers loads from a folder, under the names that its files have."""
    unusable.refuse_adapter(folder)  # transformers would load what it is an adapter of
    weights = weight_files.find(folder)
    if weights.index:
        weight_files.refuse_without_metadata(weights.index)
    return safetensors_index.read_index(weights.files, weights.named)


def transformers_config(config: Config, file: Path) -> PretrainedConfig:
    """The configuration that transformers' class makes of a normalised config.json.

    Raises:
        UserError: the installed version has no such class, or its class does not read the config's form, or
            refuses a value.
    """
    model_type = str(config.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        raise UserError(f"{file}: this version of transformers has no architecture {model_type!r:.60}")
    form = CONFIG_MAPPING[model_type]
    keys = inspect.signature(form.__init__).parameters
    if not configs.is_known(model_type) and config.get("rope_parameters") and "rope_parameters" not in keys:
        if "rope_theta" not in keys:
            raise UserError(
                f"{file}: it was written by transformers 5, whose rope_parameters this version's "
                f"{form.__name__} does not read; run `pip install 'transformers>=5'`"
            )
        config = configs.older_form(config, file)
    try:
        whole: PretrainedConfig = form.from_dict(configs.for_transformers(config))
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise UserError(
            f"{file}: transformers {transformers.__version__} refuses it ({first_line(error)})"
        ) from None
    return whole


@contextmanager
def rewritten(folder: Path) -> Iterator[Path]:
    """The checkpoint as a folder for tools that load it themselves, its config.json as they read it right.

    Raises:
        UserError: as `transformers_config`.
    """
    with tempfile.TemporaryDirectory(prefix=".checkpoint.", dir=folder) as temporary:
        target = Path(temporary)
        for file in folder.iterdir():
            if file.is_file() and file.name != "config.json" and not file.name.endswith(".onnx"):
                (target / file.name).symlink_to(file.resolve())
        transformers_config(read_config(folder), folder / "config.json").save_pretrained(target)
        yield target


def _refuse_some(folder: Path, verb: str, names: Iterable[str], what: str) -> None:
    if names := sorted(names):
        raise UserError(f"{folder} {verb} {shown(names)}, {what}")


def _prove_tensors(report: dict[str, Any], config: Config, folder: Path, skip: SkipSet) -> None:
    """Every tensor of the model is the file's, but those of the skip set; every one of the file is used."""
    rules = rules_of(config.get("model_type"))
    missing = [name for name in report["missing_keys"] if not is_left_out(name, skip, rules)]
    dropped = drop_lists.skip_set(config, folder / "config.json")
    if missing and all(is_left_out(name, dropped, rules) for name in missing):
        raise UserError(
            f"{folder}: the weights of {dropped.name} are gone from its files, and this needs the whole "
            "model: take the model that it was pruned from"
        )
    _refuse_some(folder, "lacks", missing, "which transformers would draw at random")
    unused = [name for name in report["unexpected_keys"] if not is_table(name)]
    _refuse_some(folder, "holds", unused, f"which {config.get('model_type')} does not use")
    # Version 4 gives names, version 5 (name, shape there, shape here).
    misfits = [one if isinstance(one, str) else str(one[0]) for one in report["mismatched_keys"]]
    _refuse_some(folder, "holds", misfits, "in another shape than config.json implies")


def _prove_config(model: Any, config: Config, file: Path) -> None:
    """Every key that is understood has the value that the graph is written from, and so has each norm."""
    for key, value in config.items():
        if key in configs.defaults(config["model_type"]) and not key.startswith("rope_"):
            theirs = getattr(model.config, key, value)
            if theirs != value:
                raise UserError(
                    f"{file}: {key} is {value!r:.60} here, and transformers {transformers.__version__} makes "
                    f"{theirs!r:.60} of it; say it in config.json"
                )
    eps = config.get("rms_norm_eps", config.get("layer_norm_eps"))
    for name, module in model.named_modules():
        theirs = getattr(module, "variance_epsilon", getattr(module, "eps", eps))
        if theirs != eps:
            raise UserError(f"{file}: eps is {eps} here, and {theirs} of transformers' {name}")


def _prove_rope(model: Any, config: Config, file: Path) -> None:
    """The angles are those that the graph computes, where it can."""
    kind = (config["rope_scaling"] or {"rope_type": "default"})["rope_type"]
    tables = list(_rope_tables(model))
    if not tables:
        raise UserError(f"{file}: transformers' model has no rope, and config.json has one")
    if kind not in AUTHORED:
        return
    for is_local, theirs, factor in tables:
        ours = local_rope(config) if is_local else rope(config)
        same = theirs.shape == ours.frequencies.shape
        same = same and np.allclose(theirs, ours.frequencies, rtol=1e-5, atol=0)
        if not (same and np.isclose(factor, ours.factor, rtol=1e-6)):
            raise UserError(
                f"{file}: transformers computes other rotary angles than config.json says "
                f"({kind}, rope_theta {config['rope_theta']:g})"
            )


def _rope_tables(model: Any) -> Iterator[tuple[bool, npt.NDArray[np.float32], float]]:
    """(whether it is of windows alone, inverse frequencies, factor) of each rope in a model.

    Version 4 has a module for each of Gemma 3's two, version 5 one module with a table a type of layer.
    """
    for name, module in model.named_modules():
        for table, values in module.named_buffers(recurse=False):
            if table.endswith("inv_freq") and "original" not in table:
                kind = table.removesuffix("inv_freq")
                is_local = kind.startswith("sliding") or name.endswith("_local")
                yield is_local, values.float().cpu().numpy(), getattr(module, f"{kind}attention_scaling")
