"""The user's own GGUF that a checkpoint was converted from, while it is still that file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.models import demo
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.gguf import originals, parts
from pipeline.models.gguf.header import GgufTensor
from pipeline.types import UserError


@dataclass(frozen=True)
class Origin:
    """A GGUF that a checkpoint was made from.

    Attributes:
        file: it; of a split model the first part.
        fields: key → value.
        tensors: by name, with the layers' numbers of the checkpoint.
    """

    file: Path
    fields: dict[str, Any]
    tensors: dict[str, GgufTensor]


def of_checkpoint(checkpoint: Checkpoint) -> Origin | str | None:
    """The GGUF of a checkpoint.

    Returns:
        Why it cannot be used, in words, where it is gone or is another file now; None where the checkpoint
        came from no GGUF.
    """
    source = checkpoint.source
    if source.kind != "gguf":
        return None
    try:
        file = demo.gguf(source.origin) if source.origin in demo.MODELS else checkpoint.origin
        if not file.is_file():
            return f"{file}, which this model came from, is gone"
        states = source.files or store.weights.states([file], full=True)
        for known in states:
            if not store.weights.is_same(known, file.with_name(known.file)):
                return f"{file.with_name(known.file)} is not the file that this model came from any more"
        if not source.files and source.file_sha256 != states[0].sha256:
            return f"{file} is not the file that this model came from any more"
        header = parts.read(file)
    except UserError as error:
        return str(error)
    numbers = _numbers(header.fields, checkpoint.config["num_hidden_layers"])
    return Origin(
        file, header.fields, {_renumbered(tensor.name, numbers): tensor for tensor in header.tensors}
    )


def _numbers(fields: Mapping[str, Any], num_layers: int) -> list[int] | None:
    """For each layer of a file, its index in the checkpoint; None where they are the same.

    A variant that was shipped and read again has the layers of the whole model, and its file has fewer.

    Args:
        fields: of the file.
        num_layers: of the checkpoint.
    """
    layers: list[int] | None = fields.get(originals.LAYERS)
    return layers if fields.get(originals.TOTAL) == num_layers else None


def _renumbered(name: str, numbers: list[int] | None) -> str:
    before, _, rest = name.partition(".")
    if before != "blk" or numbers is None:
        return name
    layer, _, part = rest.partition(".")
    return f"blk.{numbers[int(layer)]}.{part}"
