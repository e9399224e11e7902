"""What the files of a GGUF model say together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.models.gguf import header, names
from pipeline.models.gguf.header import GgufHeader, GgufTensor
from pipeline.types import UserError


def read(file: Path) -> GgufHeader:
    """What a model's files say together.

    Raises:
        UserError: one of them cannot be read or is missing, or they are not parts of one model.
    """
    paths = names.files(file)
    headers = [header.read(path) for path in paths]
    first = headers[0]
    for i, part in enumerate(headers):
        _refuse_foreign_part(part, i, len(headers), first.fields)
    tensors: dict[str, GgufTensor] = {}
    for part in headers:
        for tensor in part.tensors:
            if tensor.name in tensors:
                raise UserError(f"{part.file} holds {tensor.name}, as {tensors[tensor.name].file} does")
            tensors[tensor.name] = tensor
    expected = first.fields.get("split.tensors.count", len(tensors))
    if expected != len(tensors):
        raise UserError(f"{first.file}: split.tensors.count is {expected}, but there are {len(tensors)}")
    return GgufHeader(first.file, first.fields, tuple(tensors.values()))


def _refuse_foreign_part(part: GgufHeader, i: int, count: int, fields: dict[str, Any]) -> None:
    """Refuses a file that is not part `i` of `count`, or that says something else than the first."""
    claimed = part.fields.get("split.count") or 1
    if claimed != count:
        raise UserError(
            f"{part.file} is one of {claimed!r:.20} files of a model (split.count), and its name is that of "
            f"one of {count}; the parts are found by their names, NAME-00001-of-0000N.gguf"
        )
    if count > 1 and part.fields.get("split.no") != i:
        raise UserError(f"{part.file}: split.no is {part.fields.get('split.no')!r:.20}, not {i}")
    for key, value in part.fields.items() if i else ():  # a NaN is not even what it is itself
        if not key.startswith("split.") and fields.get(key) != value:
            raise UserError(f"{part.file} says something else of {key} than the first part")
