"""A GGUF file → an ordinary checkpoint: safetensors, config.json, the tokenizer. No torch.

transformers can load a GGUF too, but it adds a BOS although the file says not to, loses the digit splitting
of SmolLM2's tokenizer, takes no notice of `rope_freqs.weight`, and needs torch and accelerate. `gguf`
(llama.cpp's own package) dequantises.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import save_file

from pipeline import store
from pipeline.models.gguf import keys, layers, longrope, parts, rope, sizes, tensors, tokenizer, vocabulary
from pipeline.models.gguf.dialects import DIALECTS
from pipeline.models.gguf.header import GgufHeader
from pipeline.models.gguf.layers import Layers
from pipeline.models.gguf.numbers import Numbers
from pipeline.models.gguf.stored import Array
from pipeline.types import UserError, first_line


def convert(file: Path, folder: Path) -> None:
    """Writes config.json, generation_config.json, the tokenizer and model.safetensors into `folder`.

    Args:
        file: the GGUF, or any part of a split one.
        folder: for the checkpoint.

    Raises:
        UserError: no GGUF, a part of it is missing, or something in it is not understood here.
    """
    header = parts.read(file)
    own = _layers(header)
    config = own.of_original(_config(header, own))
    fields, context = header.fields, config["max_position_embeddings"]
    words = tokenizer.tokenizer(file, fields)  # refuses before the weights are read
    settings = tokenizer.settings(file, fields, context)
    generation = {**tokenizer.ids(file, fields), "eos_token_id": vocabulary.end_tokens(file, fields)}
    _save(dict(tensors.arrays(header, config, own)), folder / "model.safetensors")
    with store.atomic(folder / "tokenizer.json") as temporary:
        words.save(str(temporary))
    store.write_json(folder / "tokenizer_config.json", settings)
    store.write_json(folder / "generation_config.json", generation)
    store.write_json(folder / "config.json", config)


def original_config(header: GgufHeader) -> dict[str, Any]:
    """config.json of the Hugging Face model, with LLM-Drop's lists of what the file has not of it.

    Raises:
        UserError: the architecture is not read, or a key is not understood here.
    """
    own = _layers(header)
    return own.of_original(_config(header, own))


def config_of(header: GgufHeader) -> dict[str, Any]:
    """config.json of a model with the file's layers alone, each of them whole; `original_config`'s errors."""
    return _config(header, _layers(header))


def _layers(header: GgufHeader) -> Layers:
    """The layers of a file in which nothing is left that is not understood."""
    file, fields = header.file, header.fields
    keys.refuse_no_names(file, fields)
    arch = fields.get("general.architecture")
    if arch not in DIALECTS:
        raise UserError(
            f"{file}: GGUF architecture {arch!r:.40} is not read (only {', '.join(DIALECTS)}); "
            "take its safetensors"
        )
    keys.refuse_unknown(file, fields, arch)
    tokenizer.refuse_odd(file, fields)
    return layers.of(header, arch)


def _config(header: GgufHeader, own: Layers) -> dict[str, Any]:
    file, fields = header.file, header.fields
    arch = fields["general.architecture"]
    # Where the file names no padding, the class of Phi-3 would have 32,000 of any vocabulary.
    ids = {"pad_token_id": None, **tokenizer.ids(file, fields)}
    config = {**sizes.config(header, arch, own), **tensors.biases(header, arch), **ids}
    if (scaling := _table_scaling(header, arch, config)) is not None:
        if config["rope_scaling"] is not None:
            raise UserError(f"{file} has tensors and {arch}.rope.scaling for its rope; one is too many")
        config["rope_scaling"] = scaling
    return config


def _table_scaling(header: GgufHeader, arch: str, config: dict[str, Any]) -> dict[str, Any] | None:
    """rope_scaling of config.json, where tensors say it."""
    named = {name: tensors.table(header, name) for name in DIALECTS[arch].tables}
    tables = {name: array for name, array in named.items() if array is not None}
    if arch == "phi3":
        return longrope.scaling(Numbers(header.file, header.fields, arch), tables, config)
    if rope.FREQUENCIES not in tables:
        return None
    return rope.of_frequencies(header.file, tables[rope.FREQUENCIES], config)


def _save(arrays: dict[str, Array], path: Path) -> None:
    with store.atomic(path) as temporary:
        try:
            save_file(arrays, temporary, metadata={"format": "pt"})
        except SafetensorError as error:  # it wraps the system's error, a full disk say
            raise UserError(f"cannot write {path}: {first_line(error)}") from None
