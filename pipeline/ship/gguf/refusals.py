"""Which variants a GGUF can say, by what their graphs say of them: no weights are read."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from pipeline.models import rope
from pipeline.models.compensation import MapPlace
from pipeline.models.config import SLIDING, Config
from pipeline.models.gguf import tensors
from pipeline.models.gguf.dialects import DIALECTS, Dialect, architecture
from pipeline.models.quantisation import gguf_blocks
from pipeline.models.quantisation.names import METHOD, GraphPrecision, is_in_blocks
from pipeline.ship.gguf import keys, readback
from pipeline.types import SkipSet

_OF_LLAMA = ("llama", "qwen2")
"""llama.cpp's architectures whose layers `deci` can say, biases included."""
_WITHOUT_TABLES = ("qwen2", "qwen3")
"""Those that read no `rope_freqs.weight`."""


def refusal(
    config: Config,
    skip: SkipSet,
    places: Collection[MapPlace] = (),
    precision: GraphPrecision | None = None,
) -> str | None:
    """Why llama.cpp has no form for a variant.

    Args:
        config: of the whole model, normalised.
        skip: what is left out.
        places: of the maps that stand for it.
        precision: of the graph; None of one with the checkpoint's own weights.

    Returns:
        None where it has one.
    """
    model_type = config.get("model_type")
    arch = architecture(model_type) if isinstance(model_type, str) else None
    if arch is None:
        return (
            f"GGUF files of {model_type} are not written here ({', '.join(DIALECTS)} and mistral are); ship "
            "whole blocks with --to hf, and convert that with llama.cpp's convert_hf_to_gguf.py"
        )
    dialect, count = DIALECTS[arch], config["num_hidden_layers"]
    if reason := _of_numbers(config, dialect) or _of_blocks(arch, precision):
        return reason
    if len(skip.attention) == len(skip.mlp) == count and not places:
        return "every layer is skipped, and llama.cpp has no model without layers"
    if is_deci(skip, places):
        if len(skip.attention) == count:
            return "every attention is skipped, and llama.cpp has no model without keys and values"
        return _of_sublayers(arch, config, places)
    return _of_whole_layers(arch, config, [i for i in range(count) if (i, "attn") not in skip])


def is_deci(skip: SkipSet, places: Collection[MapPlace]) -> bool:
    """Whether a variant needs llama.cpp's architecture with counts a layer."""
    return skip.attention != skip.mlp or bool(places)


def _of_numbers(config: Config, dialect: Dialect) -> str | None:
    key, function = dialect.activation
    if config.get(key, function) != function:
        return f"{key} is {config[key]!r:.40}, and llama.cpp's {dialect.model_type} has {function}"
    kind = (config["rope_scaling"] or {}).get("rope_type", "default")
    if kind not in rope.AUTHORED or not set(keys.tables(config)) <= dialect.tables:
        return f"rope scaling {kind!r:.40} of {config['model_type']} is not written as GGUF"
    if config.get("attention_bias") and dialect.model_type != "llama":
        return f"attention_bias is true, and llama.cpp's {dialect.model_type} has no such biases"
    return None


def _of_blocks(arch: str, precision: GraphPrecision | None) -> str | None:
    """What llama.cpp has not of quantised weights: other blocks; in Gemma 2 a head beside the embedding."""
    form = precision.weights if precision else None
    if precision is None or form is None:
        return None
    if form.block_size != gguf_blocks.BLOCK_SIZE:
        method = f" --method {form.method}" if form.method != METHOD else ""
        return (
            f"its weights are in blocks of {form.block_size}, and llama.cpp's types of {form.bits} bits have "
            f"blocks of {gguf_blocks.BLOCK_SIZE}; export it with --precision int{form.bits} --block-size "
            f"{gguf_blocks.BLOCK_SIZE}{method}"
        )
    if arch == "gemma2" and is_in_blocks(form.head_bits, form.bits, precision.activations):
        other = replace(precision, activations="fp16")
        way = (
            f"export it with --precision {other.name}, whose head is the embedding"
            if not is_in_blocks(form.head_bits, form.bits, other.activations)
            else f"ship its fp32 twin with --type q{form.bits}_0"
        )
        return f"its head is quantised apart from the embedding, and llama.cpp's gemma2 has none; {way}"
    return None


def _of_whole_layers(arch: str, config: Config, kept: list[int]) -> str | None:
    """What llama.cpp's architecture has not, or derives otherwise for fewer layers."""
    if reason := _of_architecture(arch, config):
        return reason
    expected = keys.cut(config, kept)
    if arch == "gemma2" and SLIDING not in expected["layer_types"]:
        return "no layer with a window is left, and llama.cpp's gemma2 always has one"
    if keys.tables(config):  # tensors, which have nothing to do with the layers
        expected = {**expected, "rope_scaling": None}
    names = tensors.places(expected, DIALECTS[arch])
    header = readback.unwritten(keys.of_whole_layers(arch, expected), names, config["vocab_size"])
    reason = readback.difference(header, expected)
    return reason and f"llama.cpp would run another model of these layers: {reason}"


def _of_architecture(arch: str, config: Config) -> str | None:
    """What llama.cpp's loader of an architecture takes for granted, by its `src/models/<arch>.cpp`.

    It would refuse the file; `deci` takes Qwen2's sizes of heads and tables of the rope.
    """
    if arch in _WITHOUT_TABLES and keys.tables(config):
        kind = config["rope_scaling"]["rope_type"]
        return f"rope scaling {kind!r:.40} needs a table, and llama.cpp's {arch} reads none"
    heads, size, hidden = config["num_attention_heads"], config["head_dim"], config["hidden_size"]
    if arch == "qwen2" and heads * size != hidden:
        return (
            f"{heads} heads of {size} are not hidden_size {hidden}, which llama.cpp's qwen2 takes for granted"
        )
    if arch == "gemma2" and not config["tie_word_embeddings"]:
        return "its head is no copy of the embedding, and llama.cpp's gemma2 has no other"
    return None


def _of_sublayers(arch: str, config: Config, places: Collection[MapPlace]) -> str | None:
    run = next((place for place in places if place.kind == "block"), None)
    if run:
        return (
            f"the map of {run.layers} reads the stream without a norm, and llama.cpp has no such layer; "
            "compensate --with matrix, which makes none"
        )
    if arch not in _OF_LLAMA:
        return (
            f"sublayers of {config['model_type']} cannot be skipped alone: llama.cpp's architecture with "
            "counts a layer (deci) has Llama's layers alone; skip whole blocks"
        )
    return None
