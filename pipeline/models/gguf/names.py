"""The files of a GGUF model: one, or parts named `NAME-00001-of-00003.gguf` and so on."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.types import UserError

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")
"""llama-gguf-split's names, without the suffix."""
_MOST_PARTS = 1024


def model_name(file: Path) -> str:
    """The name of the model in a GGUF file: the file's, without the number of its part."""
    match = _PART.fullmatch(file.stem)
    return match["stem"] if match else file.stem


def files(file: Path) -> list[Path]:
    """The files of a model, the first of them first, by the name of any.

    Raises:
        UserError: one of them is not there.
    """
    match = _PART.fullmatch(file.stem)
    if match is None:
        return [file]
    count = int(match["count"])
    if not 1 <= int(match["number"]) <= count <= _MOST_PARTS:
        raise UserError(f"{file} is no part of a split model that llama.cpp writes")
    parts = [file.with_name(f"{match['stem']}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]
    for part in parts:
        if not part.is_file():
            raise UserError(f"{file} is one of {count} parts, and {part} is missing")
    return parts
