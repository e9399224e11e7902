"""Tiny variants to ship: from safetensors, and from a GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf as library
import numpy as np

from pipeline.graphs import export, variants
from pipeline.models import checkpoint
from pipeline.models.gguf import parts
from pipeline.models.gguf.header import GgufHeader, GgufTensor
from pipeline.models.quantisation.names import requested
from pipeline.ship.gguf import entries, output
from pipeline.types import SkipSet
from tests import overlays, tiny_gguf
from tests.tiny_gguf import Array, Kind, Tiny

_OF_THE_WRITER = ("general.architecture", "general.quantization_version")
IDS = [5, 9, 13, 40, 7, 77, 120, 33, 250, 61]


def cut(base: Path, name: str, form: str | None = None) -> Path:
    """The graph of a variant, with maps of that form."""
    skip = SkipSet.parse(name)
    if form is None:
        return variants.cut(base, skip)
    return variants.compensate(base, skip, overlays.of_form(base.parent, skip, form), form)


def base(root: Path, model_type: str = "llama", **changes: Any) -> Path:
    """The base graph of a tiny model of safetensors, with a tokenizer."""
    name = "m" + "".join(filter(str.isalnum, f"{model_type}{changes}"))[:100]
    folder = root / "graphs" / name
    if not folder.is_dir():
        tiny_gguf.source(folder, model_type, **{"num_hidden_layers": 4, **changes})
    return export.export_base(checkpoint.open_checkpoint(folder))


def quantised(base: Path, precision: str) -> Path:
    """The base graph beside one with the checkpoint's own weights, in 'int4-b32-fp32' say."""
    (wanted,) = requested(precision)
    return export.export(
        checkpoint.open_checkpoint(base.parent), wanted.activations, SkipSet(), wanted.weights
    )


def numbers(file: Path) -> dict[str, Array]:
    """The numbers of a GGUF's tensors by name, by llama.cpp's own package."""
    return {name: library.dequantize(one.stored(), one.kind) for name, one in tensors(file).items()}


def in_float32(file: Path, other: Path) -> Path:
    """The same numbers in a file without blocks, whose activations llama.cpp rounds in no product."""
    fields = {key: value for key, value in read(file).fields.items() if key not in _OF_THE_WRITER}
    flat = [
        entries.new(name, array.reshape(tensors(file)[name].shape).astype(np.float32), Kind.F32)
        for name, array in numbers(file).items()
    ]
    other.touch()
    output.write(other, read(file).fields["general.architecture"], fields, flat)
    return other


def from_gguf(
    root: Path, model_type: str = "llama", how: Tiny | None = None, **changes: Any
) -> tuple[Path, Path]:
    """(the base graph of a tiny model that came from a GGUF, the GGUF); `root` is the current directory."""
    source = tiny_gguf.source(root / "source", model_type, **{"num_hidden_layers": 4, **changes})
    file = tiny_gguf.write(source, root / "tiny.gguf", how)
    return export.export_base(checkpoint.resolve(str(file))), file


def tensors(file: Path) -> dict[str, GgufTensor]:
    """The tensors of a GGUF by name."""
    return {tensor.name: tensor for tensor in read(file).tensors}


def read(file: Path) -> GgufHeader:
    """The header of a GGUF."""
    return parts.read(file)
