"""The user's own GGUF that a checkpoint was converted from, while it is still that file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.models import demo
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.gguf import layers, parts
from pipeline.models.gguf.header import GgufTensor
from pipeline.ship.gguf import kinds
from pipeline.types import UserError


@dataclass(frozen=True)
class Origin:
    """A GGUF that a checkpoint was made from.

    Attributes:
        file: it; of a split model the first part.
        fields: key → value.
        tensors: by name, the layers numbered as in the whole model.
    """

    file: Path
    fields: dict[str, Any]
    tensors: dict[str, GgufTensor]

    @property
    def kind(self) -> str | None:
        """llama.cpp's name of its type, in lower case; None where it names none."""
        return kinds.type_name(self.fields.get("general.file_type"))


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
        numbers = layers.of(header, header.fields["general.architecture"]).numbers
    except UserError as error:
        return str(error)
    return Origin(file, header.fields, {_original(one.name, numbers): one for one in header.tensors})


def _original(name: str, numbers: Sequence[int]) -> str:
    """The name that a tensor has in the whole model.

    Args:
        name: in the file, which counts its layers without gaps.
        numbers: for each layer of the file, its index in the whole model.
    """
    match = re.match(r"blk\.(\d+)\.", name)
    return name if match is None else f"blk.{numbers[int(match[1])]}.{name[match.end() :]}"
