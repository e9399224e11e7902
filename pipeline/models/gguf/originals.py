"""Which layers of the original model the layers of a GGUF file are, where its writer says it.

llama.cpp counts layers without gaps, so `pipeline ship --to gguf` numbers them anew where whole layers go,
and says in keys of its own what they were. llama.cpp passes over them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, TypeGuard

from pipeline.models import provenance
from pipeline.models.gguf.header import GgufHeader
from pipeline.store.records import MAX_LAYERS
from pipeline.types import UserError

TOTAL, LAYERS = f"{provenance.NAME}.{provenance.NUM_LAYERS}", f"{provenance.NAME}.{provenance.LAYERS}"
"""L of the original model; one of its indices for each layer of the file. Texts beside them are for
people."""


def read(header: GgufHeader, count: int) -> tuple[int, tuple[int, ...]]:
    """(L of the original model, for each layer of the file its index there).

    Args:
        header: of the file.
        count: layers that the file has.

    Raises:
        UserError: a key is odd, or they contradict each other or the file.
    """
    file, fields = header.file, header.fields
    prefix = f"{provenance.NAME}."
    for key, value in fields.items():
        if key.startswith(prefix) and key not in (TOTAL, LAYERS) and not isinstance(value, str):
            raise UserError(f"{file}: {key:.100} is not understood here; a newer version may have written it")
    total, layers = fields.get(TOTAL), fields.get(LAYERS)
    if total is None and layers is None:
        return count, tuple(range(count))
    if not _is_index(total) or not count <= total <= MAX_LAYERS:
        raise UserError(f"{file}: {TOTAL} is {total!r:.40}, and {count} layers are there")
    if not isinstance(layers, list) or not all(map(_is_index, layers)) or len(layers) != count:
        what = f"has {len(layers)} numbers" if isinstance(layers, list) else f"is {layers!r:.40}"
        raise UserError(f"{file}: {LAYERS} {what}; it needs the index of each of {count} layers")
    for before, after in pairwise(layers):
        if after == before:
            raise UserError(
                f"{file}: {LAYERS} has {after} twice: a map stands in for a part of that layer, which is not "
                "read back: take the variant that it was fitted to"
            )
        if after < before:
            raise UserError(f"{file}: {LAYERS} is not ascending: {after} follows {before}")
    if layers[-1] >= total:
        raise UserError(f"{file}: {LAYERS} has {layers[-1]}, and {TOTAL} is {total}")
    return total, tuple(layers)


def _is_index(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
