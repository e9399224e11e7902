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
from pipeline.models.gguf import keys, parts, rope, sizes, tensors, tokenizer
from pipeline.models.gguf.header import GgufHeader
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
    config = config_of(header)
    fields, context = header.fields, config["max_position_embeddings"]
    words = tokenizer.tokenizer(file, fields)  # refuses before the weights are read
    settings = tokenizer.settings(file, fields, context)
    generation = {**tokenizer.ids(file, fields), "eos_token_id": tokenizer.end_tokens(file, fields)}
    _save(header, config, folder / "model.safetensors")
    with store.atomic(folder / "tokenizer.json") as temporary:
        words.save(str(temporary))
    store.write_json(folder / "tokenizer_config.json", settings)
    store.write_json(folder / "generation_config.json", generation)
    store.write_json(folder / "config.json", config)


def config_of(header: GgufHeader) -> dict[str, Any]:
    """config.json of the Hugging Face model.

    Raises:
        UserError: the architecture is not read, or a key is not understood here.
    """
    file, fields = header.file, header.fields
    arch = fields.get("general.architecture")
    if arch not in sizes.DIALECTS:
        raise UserError(
            f"{file}: GGUF architecture {arch!r:.40} is not read (only {', '.join(sizes.DIALECTS)}); "
            "take its safetensors"
        )
    keys.refuse_unknown(file, fields, arch)
    tokenizer.refuse_odd(file, fields)
    config = {**sizes.config(header, arch), **tensors.biases(header, arch), **tokenizer.ids(file, fields)}
    factors = tensors.frequencies(header)
    if factors is not None and (scaling := rope.of_frequencies(file, factors, config)) is not None:
        if config["rope_scaling"] is not None:
            raise UserError(f"{file} has {rope.FREQUENCIES} and {arch}.rope.scaling; one of them is too many")
        config["rope_scaling"] = scaling
    return config


def _save(header: GgufHeader, config: dict[str, Any], path: Path) -> None:
    arrays = dict(tensors.arrays(header, config))
    with store.atomic(path) as temporary:
        try:
            save_file(arrays, temporary, metadata={"format": "pt"})
        except SafetensorError as error:  # it wraps the system's error, a full disk say
            raise UserError(f"cannot write {path}: {first_line(error)}") from None
