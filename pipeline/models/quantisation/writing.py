"""Writes the file of a model's quantised weights, tensor by tensor.

Legend: B block size.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from pipeline import store
from pipeline.models import safetensors_index
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.quantisation import blocks
from pipeline.models.quantisation.blocks import Array
from pipeline.models.quantisation.names import Quantisation
from pipeline.models.quantisation.rounding import Rounding
from pipeline.models.sizes import rules_of
from pipeline.models.tensor_names import is_table
from pipeline.types import TensorSlice, UserError

log = logging.getLogger(__name__)
VALUES, SCALES = ".values", ".scales"
_LONG = 1 << 28
"""Bytes of quantised weights whose making is announced: it takes a minute or more."""


def linear_weights(checkpoint: Checkpoint) -> dict[str, TensorSlice]:
    """Name → where it lies, of every weight that a product is made with; a tied head has the embedding's."""
    rules = rules_of(checkpoint.config["model_type"])
    embedding, head = f"{rules.embedding}.weight", f"{rules.head}.weight"
    weights = {
        name: tensor
        for name, tensor in checkpoint.tensors.items()
        if len(tensor.shape) == 2 and name.endswith(".weight") and name != embedding and not is_table(name)
    }
    if checkpoint.config["tie_word_embeddings"]:
        weights[head] = checkpoint.tensors[embedding]
    return weights


def write(path: Path, checkpoint: Checkpoint, quantisation: Quantisation, rounding: Rounding) -> None:
    """Writes header, scales and values; of each weight nothing stays in memory.

    Args:
        path: of the file, which is there whole or not at all.
        checkpoint: of the weights.
        quantisation: the form.
        rounding: what gives the blocks.

    Raises:
        UserError: as `rounding`, with the weight's name.
    """
    weights = linear_weights(checkpoint)
    bits = {name: _bits(name, checkpoint, quantisation) for name in weights}
    header, places = _layout(weights, bits, quantisation, checkpoint.identity)
    if sum(sum(end - begin for begin, end in one) for one in places.values()) > _LONG:
        log.info("quantising the weights of %s to %s, once", checkpoint.folder, path.name)
    with store.atomic(path) as temporary, temporary.open("wb") as file:
        file.write(header)
        for name, tensor in weights.items():
            weight = safetensors_index.numbers(checkpoint.folder / tensor.file, tensor)
            try:
                quantised = rounding(name, _as_product(weight), bits[name], quantisation.block_size)
            except UserError as error:
                raise UserError(f"{checkpoint.folder}: {name}: {error}") from None
            parts = (quantised.scales.astype("<f2").tobytes(), blocks.packed(quantised.values, bits[name]))
            for (begin, end), data in zip(places[name], parts, strict=True):
                assert len(data) == end - begin, "blocks have the sizes that the header says"
                _put(file, len(header) + begin, data)


def _bits(name: str, checkpoint: Checkpoint, quantisation: Quantisation) -> int:
    """Bits of a weight: the head's and the values' may be wider."""
    rules = rules_of(checkpoint.config["model_type"])
    if name == f"{rules.head}.weight":
        return quantisation.head_bits
    is_values = rules.values is not None and name.endswith(f".{rules.values}.weight")
    return quantisation.value_bits if is_values else quantisation.bits


def _as_product(weight: Array) -> npt.NDArray[np.float32]:
    """[out, in] in the checkpoint's type → [in, out] fp32."""
    return np.ascontiguousarray(weight.T, np.float32)


def _put(file: IO[bytes], offset: int, data: bytes) -> None:
    file.seek(offset)
    file.write(data)


def _layout(
    weights: Mapping[str, TensorSlice], bits: Mapping[str, int], quantisation: Quantisation, identity: str
) -> tuple[bytes, dict[str, tuple[tuple[int, int], tuple[int, int]]]]:
    """(the header, name → ranges of scales and values behind it): scales first, whose numbers are wider."""
    entries: dict[str, Any] = {
        "__metadata__": {
            "format": "quantised",
            "weights": identity,
            "quantisation": quantisation.name,
            "bits": str(quantisation.bits),
            "block_size": str(quantisation.block_size),
            "method": quantisation.method,
        }
    }
    end, ranges = 0, dict[str, list[tuple[int, int]]]()
    for part in (SCALES, VALUES):
        for name, tensor in weights.items():
            out, width = tensor.shape
            if part == SCALES:
                dtype, shape = "F16", [width // quantisation.block_size, out]
            else:
                dtype, shape = ("I8", [width, out]) if bits[name] == 8 else ("U8", [width * out // 2])
            begin, end = end, end + int(np.prod(shape)) * safetensors_index.ITEM_SIZES[dtype]
            entries[f"{name}{part}"] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
            ranges.setdefault(name, []).append((begin, end))
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 64)
    return len(text).to_bytes(8, "little") + text, {name: (a, b) for name, (a, b) in ranges.items()}
