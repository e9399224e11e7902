"""Folders that are no checkpoint of safetensors: what each is, and the way to one, in one line."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from pipeline.models.config import is_known, known, read_config
from pipeline.store import records
from pipeline.types import UserError, shown

ADAPTER = "adapter_config.json"
"""What makes a folder one of peft's adapters."""
_ADAPTERS_RECORD = "heal.json"
_DECODERS = ("ForCausalLM", "LMHeadModel")
_ENCODERS = (
    "albert", "bart", "bert", "camembert", "clip", "deberta", "deberta-v2", "distilbert", "electra", "ernie",
    "longformer", "modernbert", "mpnet", "nomic_bert", "roberta", "siglip", "t5", "vit", "wav2vec2",
    "whisper", "xlm-roberta",
)  # fmt: skip
_SAVE = "from transformers import AutoModelForCausalLM as M; M.from_pretrained({0}).save_pretrained({1})"
_MERGE = (
    "from peft import AutoPeftModelForCausalLM as M; "
    "M.from_pretrained({0}).merge_and_unload().save_pretrained({1})"
)


def refuse_adapter(folder: Path) -> None:
    """Refuses a folder that holds an adapter, alone or beside weights.

    Beside weights too: transformers would load the base that adapter_config.json names instead of them.

    Raises:
        UserError: it does; says how it is merged.
    """
    if not (folder / ADAPTER).is_file():
        return
    if (folder / _ADAPTERS_RECORD).is_file():  # calib/<model>/<variant>/adapters/<name>
        model, variant = folder.resolve().parents[2].name, folder.resolve().parents[1].name
        command = f"pipeline export {shlex.quote(model)} --skip {variant} --adapter {folder.resolve().name}"
        raise UserError(f"{folder} is an adapter, not a model; merge it with `{command}`")
    base = records.read_object(folder / ADAPTER).get("base_model_name_or_path")
    of = f" of {base!r:.200}" if base else ""
    merge = f"merge it with `{_python(_MERGE, folder, 'merged')}` and export that folder"
    if (folder / "config.json").is_file() and any(folder.glob("model*.safetensors")):
        raise UserError(
            f"{folder} holds an adapter{of} beside a model's weights, and transformers would load the first; "
            f"{merge}, or move {ADAPTER} away to take the weights"
        )
    raise UserError(f"{folder} is an adapter{of}, not a model; {merge}")


def refuse_other_kinds(folder: Path) -> None:
    """Refuses what its small files show to be no model that is authored here: no tensor is looked at.

    Raises:
        UserError: it is an adapter, an encoder, or of another architecture.
    """
    refuse_adapter(folder)
    if (folder / "config.json").is_file() and (config := read_config(folder)).get("model_type"):
        refuse_no_decoder(config, folder)
        refuse_other_architecture(config, folder)


def refuse_other_architecture(config: Mapping[str, Any], folder: Path) -> None:
    """Refuses an architecture that no graph is authored of.

    Args:
        config: of the model.
        folder: for the message.

    Raises:
        UserError: it is one; says the other way to a graph.
    """
    if not is_known(model_type := config.get("model_type")):
        text = f"{model_type}_text"
        alone = f", and of it the text model alone, {text!r}" if is_known(text) else ""
        raise UserError(
            f"{folder}: architecture {model_type!r:.60} is not authored here "
            f"({', '.join(known())} are{alone}); where optimum has it, export it with "
            "`optimum-cli export onnx --task text-generation-with-past` "
            "and use `pipeline export --from-onnx FOLDER`"
        )


def refuse_no_decoder(config: Mapping[str, Any], folder: Path) -> None:
    """Refuses encoders and models of two parts, of which no graph of this project's form can be made.

    Args:
        config: of the model.
        folder: for the message.

    Raises:
        UserError: it is one.
    """
    classes = config.get("architectures")
    names = [str(name) for name in classes] if isinstance(classes, list) else []
    is_decoder = any(name.endswith(_DECODERS) for name in names)
    if config.get("is_encoder_decoder") is True or (config.get("model_type") in _ENCODERS and not is_decoder):
        kind = ", ".join(names) or config.get("model_type")
        raise UserError(
            f"{folder} is no causal language model but {kind:.100}; take a decoder (Llama, Qwen, …)"
        )


def refuse_without_weights(folder: Path) -> NoReturn:
    """Refuses a folder without model.safetensors and its index.

    Raises:
        UserError: always; says what the folder holds instead.
    """
    refuse_adapter(folder)
    has = {suffix: sorted(file.name for file in folder.glob(f"*{suffix}")) for suffix in WEIGHT_SUFFIXES}
    if (folder / "modules.json").is_file() and (folder / "config_sentence_transformers.json").is_file():
        raise UserError(f"{folder} is a sentence encoder, not a causal language model")
    if (folder / "model_index.json").is_file():
        raise UserError(f"{folder} is a pipeline of diffusers, not a causal language model")
    if ggufs := has[".gguf"]:
        raise UserError(f"{folder} holds GGUF files; name one: {shown(str(folder / name) for name in ggufs)}")
    if tensors := [name for name in has[".safetensors"] if "~" not in name]:  # not what compensate wrote
        raise UserError(f"{folder} holds {shown(tensors)}, {_why_not(tensors)}")
    if pickles := [*has[".bin"], *has[".pth"], *has[".pt"], *has[".ckpt"]]:
        convert = f"convert them with `{_python(_SAVE, folder, 'OUT')}`"
        if (folder / "params.json").is_file() or any(name.startswith("consolidated") for name in pickles):
            convert = "take the model's Hugging Face form (`transformers` has a convert_…_weights_to_hf.py)"
        raise UserError(
            f"{folder} holds only pickled weights ({shown(pickles)}), which are code and are not opened "
            f"here; {convert}"
        )
    if has[".onnx"]:
        raise UserError(f"{folder} holds an ONNX graph and no weights of PyTorch; use --from-onnx {folder}")
    inner = sorted(file.parent for file in folder.glob("*/config.json"))
    hint = f"; {inner[0]} has a config.json" if inner else ""
    raise UserError(f"{folder} holds no model.safetensors and no model.safetensors.index.json{hint}")


WEIGHT_SUFFIXES = (".gguf", ".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".onnx")
"""How the names of files with weights end, in whatever form."""


def _why_not(names: list[str]) -> str:
    """Why transformers does not load these safetensors files."""
    if any(name.startswith("consolidated") for name in names):
        return (
            "the form of its makers' own code, which transformers does not load; take the Hugging Face form"
        )
    if any("-of-" in name for name in names):
        return "but no model.safetensors.index.json, without which transformers does not load them; fetch it"
    return (
        "which transformers does not load by that name; rename it to model.safetensors, "
        'or name it in config.json as "transformers_weights"'
    )


def _python(code: str, folder: Path, out: str) -> str:
    """A command line that runs Python code on a folder."""
    return f"python -c {shlex.quote(code.format(repr(str(folder)), repr(out)))}"
