"""The file of a model's quantised weights: safetensors beside the checkpoint, written once, tensor by tensor.

Legend: B block size. A linear layer's weight is [out, in] in the checkpoint and [in, out] here, as MatMul
takes it.

Of each weight `X.weight` the file holds `X.weight.values`, int8 [in, out] or int4 [in · out / 2] bytes, two
numbers a byte, the first in its lower half, and `X.weight.scales` [in / B, out] float16: what ONNX's
DequantizeLinear reads with `axis=0` and `block_size=B`. A tied head is there under the head's own name.
Embeddings, norms and biases stay in the checkpoint's files.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import store
from pipeline.models import safetensors_index
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.quantisation import blocks, rounding, writing
from pipeline.models.quantisation.blocks import Blocks
from pipeline.models.quantisation.gguf_rounding import keeping
from pipeline.models.quantisation.names import BLOCK_SIZES, Quantisation, is_in_blocks
from pipeline.models.quantisation.rounding import Rounding
from pipeline.models.quantisation.writing import SCALES, VALUES, linear_weights
from pipeline.store.records import QuantisedRecord
from pipeline.types import Precision, TensorSlice, UserError

VERSION = 2
"""Of what is written here; raise it with every change. Older files are made again."""


@dataclass(frozen=True, slots=True)
class StoredBlocks:
    """Where one quantised weight lies.

    Attributes:
        values, scales: byte ranges of the file.
        bits: 4 or 8.
        shape: (in, out).
    """

    values: TensorSlice
    scales: TensorSlice
    bits: int
    shape: tuple[int, int]

    @property
    def block_size(self) -> int:
        """B."""
        return self.shape[0] // self.scales.shape[0]


def refuse_blocks(checkpoint: Checkpoint, quantisation: Quantisation) -> None:
    """Refuses what cannot be quantised so, before anything is read or written.

    Raises:
        UserError: the block size does not divide the inputs of a layer, or the checkpoint holds a graph that
            was exported elsewhere.
    """
    if checkpoint.source.kind == "onnx":
        raise UserError(
            f"{checkpoint.folder} was exported elsewhere and keeps its weights in another form: only "
            "authored graphs are quantised; export the checkpoint itself"
        )
    weights = linear_weights(checkpoint)
    size = quantisation.block_size
    if odd := next(((name, t.shape[1]) for name, t in weights.items() if t.shape[1] % size), None):
        fitting = [one for one in BLOCK_SIZES if all(t.shape[1] % one == 0 for t in weights.values())]
        options = (
            f"take --block-size {' or '.join(map(str, fitting))}" if fitting else "take --precision fp16"
        )
        raise UserError(
            f"{checkpoint.folder}: {odd[0]} has {odd[1]} inputs, and blocks of {size} do not divide them; "
            f"{options}"
        )


def ensure(checkpoint: Checkpoint, quantisation: Quantisation, how: Rounding | None = None) -> Path:
    """The file of a model's weights in this form, which is written where it is missing or of other weights.

    Args:
        checkpoint: whose folder it lies in; it is locked meanwhile.
        quantisation: the form.
        how: what rounds a weight; to nearest by default.

    Raises:
        UserError: as `refuse_blocks`, `rounding.default` and what rounds; no file is left then. Or the file
            is there and was rounded otherwise than `how` asks for.
    """
    refuse_blocks(checkpoint, quantisation)
    path = checkpoint.folder / quantisation.file
    wanted = {
        "what": "quantised-weights",
        "version": VERSION,
        "contents": checkpoint.contents,
        "quantisation": quantisation.name,
        "head_bits": quantisation.head_bits,
    }
    with store.lock(checkpoint.folder, make=False):
        if known := _current(path, wanted):
            if how:
                how.refuse_other(known, path)
            return path
        how = keeping(checkpoint, quantisation, how or rounding.default(quantisation, path))
        store.remove_unfinished(path)
        start = time.perf_counter()
        writing.write(path, checkpoint, quantisation, how)
        fields = {**wanted, "method": quantisation.method, **how.fields(store.sidecar_path(path))}
        fields |= {"sha256": _digest(path), "bytes": path.stat().st_size}
        store.write_json(store.sidecar_path(path), {**fields, "seconds": time.perf_counter() - start})
    return path


def _current(path: Path, wanted: Mapping[str, Any]) -> QuantisedRecord | None:
    """The record of a file that is there, of these weights and in this form, byte for byte as written."""
    if not path.is_file():
        return None
    record = store.records.read_if_valid(QuantisedRecord, store.sidecar_path(path))
    is_whole = record is not None and record.matches(wanted) and record.sha256 == _digest(path)
    return record if is_whole else None


def _digest(path: Path) -> str:
    """SHA-256 of the file, taken once a content: every export asks for it, and again where it is read."""
    return str(store.weights.state(path, full=True).sha256)


# ---- reading --------------------------------------------------------------------------------------------


def is_quantised(names: Iterable[str]) -> bool:
    """Whether tensors of these names are those of a file of quantised weights."""
    return any(name.endswith(f".weight{SCALES}") for name in names)


def stored(file: Path) -> dict[str, StoredBlocks]:
    """Name of each weight → where its blocks lie.

    Raises:
        UserError: the file is damaged, or its parts do not fit together.
    """
    tensors, found = safetensors_index.read_index([file]), dict[str, StoredBlocks]()
    for key, scales in tensors.items():
        if not key.endswith(SCALES):
            continue
        name = key.removesuffix(SCALES)
        values = tensors.get(f"{name}{VALUES}")
        form = _form(values, scales) if values is not None else None
        if values is None or form is None:
            raise UserError(f"{file}: the parts of {name:.200} do not fit together; export it again")
        found[name] = StoredBlocks(values, scales, *form)
    if 2 * len(found) != len(tensors):
        raise UserError(f"{file} holds something beside quantised weights; export it again")
    return found


def _form(values: TensorSlice, scales: TensorSlice) -> tuple[int, tuple[int, int]] | None:
    """(bits, (in, out)) of a weight; None where values and scales are not of one."""
    if scales.dtype != "F16" or len(scales.shape) != 2 or 0 in scales.shape:
        return None
    rows, out = scales.shape
    bits = {"I8": 8, "U8": 4}.get(values.dtype)
    if bits is None:
        return None
    width, rest = divmod(values.nbytes * 8 // bits, out)
    is_whole = not rest and width % rows == 0 and width // rows in BLOCK_SIZES
    if not is_whole or (bits == 8 and values.shape != (width, out)):
        return None
    return bits, (width, out)


def in_blocks(weights: Mapping[str, StoredBlocks], activations: Precision | None) -> dict[str, StoredBlocks]:
    """Those of a file's weights that graphs read from it, and not as the checkpoint has them.

    Args:
        weights: all of the file, as `stored` reads them.
        activations: the graphs' precision (`names.is_in_blocks`); None for all weights.
    """
    form_bits = min((one.bits for one in weights.values()), default=0)
    return {
        name: one
        for name, one in weights.items()
        if activations is None or is_in_blocks(one.bits, form_bits, activations)
    }


def dequantised(
    file: Path, activations: Precision | None = None
) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """(name, weight [in, out]) of each weight that graphs of these activations read, one at a time.

    Raises:
        UserError: as `stored`.
    """
    for name, one in in_blocks(stored(file), activations).items():
        yield name, blocks.dequantised(blocks_of(file, one))


def blocks_of(file: Path, one: StoredBlocks) -> Blocks:
    """The blocks of one weight of a file."""
    data = np.memmap(file, np.uint8, "r", one.values.offset, (one.values.nbytes,)).tobytes()
    scales = safetensors_index.numbers(file, one.scales)
    return Blocks(blocks.unpacked(data, one.bits, one.shape), scales)
