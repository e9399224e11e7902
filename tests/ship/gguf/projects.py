"""Tiny variants to ship: from safetensors, and from a GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.graphs import export, variants
from pipeline.models import checkpoint
from pipeline.models.gguf import parts
from pipeline.models.gguf.header import GgufHeader, GgufTensor
from pipeline.types import SkipSet
from tests import overlays, tiny_gguf
from tests.tiny_gguf import Tiny

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
