"""Names of a checkpoint's tensors: transformers' form of them, and what each stands for. No torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from pipeline.models.sizes import SizeRules
from pipeline.types import SkipSet, TensorSlice, UserError

_TABLE = re.compile(r"(^|\.)rotary_emb\.inv_freq$|\.masked_bias$|\.attn\.bias$|\.attention\.bias$")
_PLACE = re.compile(r"(?:^|\.)(?:layers|h)\.(?P<layer>\d{1,9})\.(?P<name>\w+)\.")
_ATTENTION = ("self_attn", "attention", "attn")
_MLP = ("mlp", "fc1", "fc2")


def is_table(name: str) -> bool:
    """Whether a tensor is a table of old checkpoints that is computed, and holds no weight."""
    return bool(_TABLE.search(name))


def canonical(tensors: Mapping[str, TensorSlice], folder: object, rules: SizeRules) -> dict[str, TensorSlice]:
    """The tensors under the names that transformers' causal model has.

    A checkpoint of the base model alone (LlamaModel) lacks the prefix `model.`: transformers puts it before
    every name where none begins with it (`modeling_utils._get_key_renaming_mapping`), and no other prefix.

    Args:
        tensors: under the names that the files have.
        folder: for messages.
        rules: of the architecture.

    Raises:
        UserError: transformers would find them under no name.
    """
    names, prefix, head = list(tensors), f"{rules.prefix}.", f"{rules.head}.weight"
    if any(name.startswith(rules.prefix) for name in names):
        return dict(tensors)
    modules = [name.removeprefix(prefix) for name in (rules.embedding, rules.layers, rules.final_norm)]
    if any(name.startswith(tuple(f"{module}." for module in modules)) for name in names):
        if head in tensors:
            raise UserError(
                f"{folder}: its tensors have no prefix {prefix!r}, and {head} is among them, which "
                "transformers refuses as corrupted; rename them"
            )
        return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    inside = re.compile(rf"(.+?\.)(?:{re.escape(prefix)})?(?:{'|'.join(modules[:2])})\.")
    if wrapped := next(filter(None, map(inside.match, names)), None):
        raise UserError(
            f"{folder}: its tensors' names begin with {wrapped[1]!r:.100}; transformers looks for "
            f"{prefix!r}: save the model that is inside the wrapper"
        )
    return dict(tensors)


def in_file(name: str, names: Collection[str]) -> str:
    """The name that a file has for a tensor: that of the base model alone, perhaps.

    Args:
        name: of the tensor in transformers' causal model.
        names: of all tensors in the file.
    """
    return name if name in names else name.partition(".")[2]


def layer_of(name: str) -> int | None:
    """The layer that a tensor is of."""
    place = _PLACE.search(name)
    return int(place["layer"]) if place else None


def is_left_out(name: str, skip: SkipSet, rules: SizeRules) -> bool:
    """Whether a tensor of the checkpoint is of a sublayer that the skip set leaves out, its norms included.

    Args:
        name: of the tensor.
        skip: what is left out.
        rules: of the architecture; a norm that attention and MLP share goes with both.
    """
    place = _PLACE.search(name)
    if place is None:
        return False
    i, part = int(place["layer"]), place["name"]
    if part in rules.attention_norms and rules.shared_norm:
        return (i, "attn") in skip and (i, "mlp") in skip
    if part in _MLP or part in rules.mlp_norms:
        return (i, "mlp") in skip
    return (part in _ATTENTION or part in rules.attention_norms) and (i, "attn") in skip


def gone(names: Iterable[str], num_layers: int) -> SkipSet:
    """The sublayers of which a checkpoint holds no projection: another tool dropped them, and their weights.

    Args:
        names: of its tensors.
        num_layers: L.
    """
    present = {(int(place["layer"]), place["name"]) for place in map(_PLACE.search, names) if place}
    attention = {layer for layer, part in present if part in _ATTENTION}
    mlp = {layer for layer, part in present if part in _MLP}
    everything = set(range(num_layers))
    return SkipSet(tuple(everything - attention), tuple(everything - mlp))
