"""Whether a model uses what its checkpoint holds: tensors that nothing reads change the model in silence."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.models.safetensors_index import same_bytes
from pipeline.models.sizes import SizeRules, rules_of
from pipeline.models.tensor_names import is_left_out, is_table, layer_of
from pipeline.types import SkipSet, TensorSlice, UserError, shown

if TYPE_CHECKING:
    from pipeline.models.checkpoint import Checkpoint

_QUANTISED = {
    "GPTQ or AWQ": re.compile(r"\.(qweight|qzeros|g_idx|scales)$"),
    "bitsandbytes": re.compile(r"\.weight\.(absmax|quant_map|nested_\w+|quant_state\.\w+)$|\.SCB$"),
    "scaled 8- or 4-bit numbers": re.compile(
        r"\.(weight_scale(_inv)?|weight_packed|weight_zero_point|weight_scale_2|input_scale|weight_blocks)$"
    ),
}
_EIGHT_BITS = ("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "I32")


def refuse_quantised(checkpoint: Checkpoint) -> None:
    """Refuses weights of a quantised model, whatever config.json says of them.

    Raises:
        UserError: a tensor is one of a quantisation's.
    """
    for kind, pattern in _QUANTISED.items():
        if names := [name for name in checkpoint.tensors if pattern.search(name)]:
            _refuse_kind(checkpoint.folder, names, kind)
    narrow = [
        name for name, t in checkpoint.tensors.items() if t.dtype in _EIGHT_BITS and name.endswith("weight")
    ]
    if narrow:
        _refuse_kind(checkpoint.folder, narrow, checkpoint.tensors[narrow[0]].dtype)


def _refuse_kind(folder: Path, names: list[str], kind: str) -> None:
    raise UserError(
        f"{folder}: the weights are quantised ({kind}: {shown(names)}); a graph needs 16- or 32-bit weights: "
        "take the model that it was quantised from"
    )


def refuse_other_layers(checkpoint: Checkpoint, skip: SkipSet) -> None:
    """Holds the number of layers in config.json against those of the files, before any loop runs over them.

    Args:
        checkpoint: of a known architecture.
        skip: sublayers whose tensors may be missing.

    Raises:
        UserError: the files lack a layer, or hold one more.
    """
    count = checkpoint.config["num_hidden_layers"]
    present = {layer for name in checkpoint.tensors if (layer := layer_of(name)) is not None}
    wanted = range(count)
    if beyond := sorted(layer for layer in present if layer not in wanted):
        raise UserError(
            f"{checkpoint.folder}: config.json says num_hidden_layers {count}, but the weights hold "
            f"{len(beyond)} layers more ({_layers(beyond)}), which would be left out"
        )
    dropped = set(skip.attention) & set(skip.mlp)
    if absent := [layer for layer in wanted if layer not in present and layer not in dropped]:
        raise UserError(
            f"{checkpoint.folder}: config.json says num_hidden_layers {count}, but the checkpoint lacks "
            f"{len(absent)} of them ({_layers(absent)})"
        )


def refuse_unread(checkpoint: Checkpoint, read: Collection[str], skip: SkipSet) -> None:
    """Refuses a checkpoint with tensors that the model does not read.

    Args:
        checkpoint: of a known architecture.
        read: names of the tensors that the model reads.
        skip: what it leaves out; tensors of those sublayers may be there.

    Raises:
        UserError: names them, with their number.
    """
    config, folder = checkpoint.config, checkpoint.folder
    rules = rules_of(config["model_type"])
    unread = [
        name
        for name in checkpoint.tensors
        if name not in read and not is_table(name) and not is_left_out(name, skip, rules)
    ]
    if (head := f"{rules.head}.weight") in unread and config["tie_word_embeddings"]:
        refuse_trained_head(folder, checkpoint.tensors, rules)
        unread.remove(head)
    if unread:
        raise UserError(
            f"{folder} holds {shown(unread)}, which {config['model_type']} does not use{_hint(unread)}"
        )


def _hint(names: Iterable[str]) -> str:
    """What such tensors usually mean."""
    names = list(names)
    if all(name.endswith(".bias") for name in names):
        return ": config.json says that there are no such biases; mend its attention_bias or mlp_bias"
    if any(".experts." in name or ".block_sparse_moe." in name for name in names):
        return ": it is a mixture of experts"
    if any("lora_" in name for name in names):
        return ": an adapter that was not merged; merge it with peft's merge_and_unload() and save that"
    if any(name.startswith(("score.", "classifier.", "v_head.", "value_head.")) for name in names):
        return ": it is a classifier or a reward model, not a causal language model"
    return "; save the model again without them, or take the architecture that has them"


def refuse_trained_head(folder: Path, tensors: Mapping[str, TensorSlice], rules: SizeRules) -> None:
    """Refuses a head of its own in the files of a checkpoint whose config.json ties it to the embedding.

    transformers takes the embedding then, and passes over the head.

    Args:
        folder: of the checkpoint.
        tensors: its tensors.
        rules: of the architecture.

    Raises:
        UserError: their bytes differ.
    """
    head, embedding = tensors.get(f"{rules.head}.weight"), tensors.get(f"{rules.embedding}.weight")
    if head is None or embedding is None:
        return
    is_same = (head.dtype, head.shape) == (embedding.dtype, embedding.shape) and same_bytes(
        folder / head.file, head, folder / embedding.file, embedding
    )
    if not is_same:
        raise UserError(
            f"{folder}: tie_word_embeddings is true, but {rules.head}.weight is not the embedding, and "
            "transformers ignores it; set tie_word_embeddings to false in config.json if the head was "
            "trained, or remove it from the file"
        )


def _layers(layers: list[int]) -> str:
    return f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]} to {layers[-1]}"
