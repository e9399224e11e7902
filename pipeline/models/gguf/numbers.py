"""Numbers among the keys of a GGUF file's architecture: each has its type, or is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.types import UserError

TAKE = "take the safetensors checkpoint of this model"


@dataclass(frozen=True, slots=True)
class Numbers:
    """Numbers among the keys of an architecture.

    Attributes:
        file: for messages.
        fields: key → value.
        arch: its name, before every key.
    """

    file: Path
    fields: Mapping[str, Any]
    arch: str

    def size(self, name: str, default: int | None = None, layers: int | None = None) -> int:
        """A positive integer.

        Args:
            name: of the key.
            default: where the key is missing.
            layers: how many there are, of a key that may have a list of one a layer; they must be the same.

        Raises:
            UserError: it is none, or it is missing and has no default.
        """
        key = f"{self.arch}.{name}"
        value = self.fields.get(key, default)
        if isinstance(value, list) and layers is not None and len(value) == layers:
            if any(one != value[0] for one in value):
                raise UserError(f"{self.file}: {key}: layers differ, {value!r:.60}; {TAKE}")
            value = value[0]
        if isinstance(value, list):
            wanted = "one number" if layers is None else f"one number, or one for each of {layers} layers,"
            raise UserError(f"{self.file}: {key} is a list of {len(value)} where {wanted} is expected")
        if value is None:
            raise UserError(f"{self.file} lacks the key {key}")
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 2**31:
            raise UserError(f"{self.file}: {key} is {value!r:.60}")
        return value

    def sizes(self, name: str, layers: int, default: list[int] | None = None) -> list[int]:
        """Sizes of one a layer, of which some may be 0; a scalar is the size of all.

        Args:
            name: of the key.
            layers: how many there are; no more than the file has room for.
            default: where the key is missing.

        Raises:
            UserError: they are none, are not one a layer, or are missing and have no default.
        """
        key = f"{self.arch}.{name}"
        value = self.fields.get(key, default)
        if value is None:
            raise UserError(f"{self.file} lacks the key {key}")
        if not isinstance(value, list):
            return [self.size(name)] * layers
        if len(value) != layers:
            raise UserError(f"{self.file}: {key} has {len(value)} numbers for {layers} layers")
        if odd := [one for one in value if type(one) is not int or not 0 <= one <= 2**31]:
            raise UserError(f"{self.file}: {key} has {odd[0]!r:.60}, which is no size")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive number; `size`'s errors.

        The file holds float32 of 1e-05; the shortest decimal that means the same is what was published.
        """
        key = f"{self.arch}.{name}"
        value = self.fields.get(key, default)
        if value is None:
            raise UserError(f"{self.file} lacks the key {key}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < np.inf:
            raise UserError(f"{self.file}: {key} is {value!r:.60}")
        return float(str(np.float32(value)))
