"""Proof of a folder before it takes its name: transformers reads from it what the whole model has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig

from pipeline.models import config as configs
from pipeline.models import pretrained as _pretrained  # noqa: F401 - transformers knows the first Qwen now
from pipeline.models import safetensors_index, weight_files
from pipeline.models.config import Config
from pipeline.models.sizes import rules_of
from pipeline.ship.hf import ffn_width
from pipeline.ship.outline import Outline
from pipeline.store import records
from pipeline.types import UserError, first_line, shown

_OF_LAYERS = {"layer_types", "no_rope_layers"}
_MAY_DIFFER = _OF_LAYERS | {
    "num_hidden_layers", "max_window_layers", "sliding_window_pattern", "_sliding_window_pattern",
    "skip_pipeline", "auto_map", "drop_attn_list", "drop_mlp_list", "transformers_weights",
    "per_layer_config",
}  # fmt: skip


class NotProved(RuntimeError):
    """The folder is not what was asked for: a fault of this program."""


def prove(folder: Path, variant: Outline, given: Config) -> None:
    """Compares what transformers reads from a folder with the whole model.

    Args:
        folder: a checkpoint of the model's own class, with the layers of the variant.
        variant: which those are.
        given: config.json of the whole model, as the file has it.

    Raises:
        NotProved: a layer would have another window or rope, another key another value; a tensor is missing,
            unused, or of another shape.
        UserError: the installed transformers refuses the config.
    """
    written, file = records.read_object(folder / "config.json"), folder / "config.json"
    whole, fewer = _read(given, file), _read(written, file)
    theirs, ours = whole.to_dict(), fewer.to_dict()
    added = set(written) - set(given)
    _refuse(key for key in {*theirs, *ours} - _MAY_DIFFER - added if theirs.get(key) != ours.get(key))
    for key in _OF_LAYERS & set(configs.defaults(written["model_type"])):
        kept = [variant.config[key][i] for i in variant.kept_layers]
        _refuse([key] if getattr(fewer, key, kept) != kept else [])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(fewer)  # type: ignore[no-untyped-call]
    head = rules_of(written["model_type"]).head
    wanted = {
        name.replace("lm_head.", f"{head}."): tuple(tensor.shape)  # GPT-NeoX's module in version 5
        for name, tensor in model.state_dict().items()
    }
    if variant.config["tie_word_embeddings"]:
        wanted.pop(f"{head}.weight", None)
    _compare(wanted, folder)


def prove_sublayers(folder: Path) -> None:
    """Compares the tensors in a folder of nemotron-nas with those that its config.json asks for.

    Raises:
        NotProved: one is missing, unused, or of another shape.
    """
    config = records.read_object(folder / "config.json")
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    wanted = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        wanted["lm_head.weight"] = (vocabulary, hidden)
    for i, block in enumerate(config["block_configs"]):
        for part, shape in _of_layer(block, hidden).items():
            wanted[f"model.layers.{i}.{part}.weight"] = shape
    _compare(wanted, folder)


def _of_layer(block: dict[str, Any], hidden: int) -> dict[str, tuple[int, ...]]:
    """Name within the layer → shape."""
    attention, ffn = block["attention"], block["ffn"]
    shapes: dict[str, tuple[int, ...]] = {}
    if not attention["no_op"]:
        shapes["input_layernorm"] = (hidden,)
        if attention["replace_with_linear"]:
            shapes["self_attn.linear_attn"] = (hidden, hidden)
        else:
            narrow = hidden // attention["n_heads_in_group"]
            rows = {"q": hidden, "k": narrow, "v": narrow, "o": hidden}
            shapes |= {f"self_attn.{part}_proj": (count, hidden) for part, count in rows.items()}
    if not ffn["no_op"]:
        shapes["post_attention_layernorm"] = (hidden,)
        if ffn["replace_with_linear"]:
            shapes["mlp.linear_mlp"] = (hidden, hidden)
        else:
            width = ffn_width.width(ffn["ffn_mult"], hidden)
            shapes |= {"mlp.gate_proj": (width, hidden), "mlp.up_proj": (width, hidden)}
            shapes["mlp.down_proj"] = (hidden, width)
    return shapes


def _compare(wanted: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    """Compares names and shapes of a model's tensors with those in a folder."""
    files = weight_files.find(folder)
    tensors = safetensors_index.read_index(files.files, files.named)
    present = {name: tensor.shape for name, tensor in tensors.items()}
    _refuse(name for name in {*wanted, *present} if wanted.get(name) != present.get(name))


def _read(config: Config, file: Path) -> PretrainedConfig:
    """The configuration that transformers' own class makes of a config.json."""
    given: dict[str, Any] = {key: value for key, value in config.items() if key != "auto_map"}
    try:
        read: PretrainedConfig = CONFIG_MAPPING[config["model_type"]].from_dict(given)
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise UserError(
            f"transformers {transformers.__version__} refuses {file.name} of the model ({first_line(error)})"
        ) from None
    return read


def _refuse(names: Any) -> None:
    if names := sorted(names):
        raise NotProved(f"{shown(names)}: not in the folder as the variant has it")
