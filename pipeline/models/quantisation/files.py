"""The file of a model's quantised weights: safetensors beside the checkpoint, written once, tensor by tensor.

Legend: B block size. A linear layer's weight is [out, in] in the checkpoint and [in, out] here, as MatMul
takes it.

Of each weight `X.weight` the file holds `X.weight.values`, int8 [in, out] or int4 [in · out / 2] bytes, two
numbers a byte, the first in its lower half, and `X.weight.scales` [in / B, out] float16: what ONNX's
DequantizeLinear reads with `axis=0` and `block_size=B`. A tied head is there under the head's own name.
Embeddings, norms and biases stay in the checkpoint's files.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from pipeline import store
from pipeline.models import safetensors_index
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.quantisation import blocks
from pipeline.models.quantisation.blocks import Blocks
from pipeline.models.quantisation.names import BLOCK_SIZES, Quantisation, is_in_blocks
from pipeline.models.sizes import rules_of
from pipeline.models.tensor_names import is_table
from pipeline.store.records import QuantisedRecord
from pipeline.types import Precision, TensorSlice, UserError

log = logging.getLogger(__name__)
Array = npt.NDArray[Any]
Rounding = Callable[[str, Array, int, int], Blocks]
"""(name, weight [in, out] fp32, bits, B) → its blocks."""
VERSION = 1
"""Of what is written here; raise it with every change. Older files are made again."""
_VALUES, _SCALES = ".values", ".scales"
_LONG = 1 << 28
"""Bytes of quantised weights whose making is announced: it takes a minute or more."""


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


def ensure(checkpoint: Checkpoint, quantisation: Quantisation, rounding: Rounding | None = None) -> Path:
    """The file of a model's weights in this form, which is written where it is missing or of other weights.

    Args:
        checkpoint: whose folder it lies in; it is locked meanwhile.
        quantisation: the form.
        rounding: how a weight is rounded; to nearest by default.

    Raises:
        UserError: as `refuse_blocks` and `blocks.rounded`; no file is left then.
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
        if _is_current(path, wanted):
            return path
        store.remove_unfinished(path)
        start = time.perf_counter()
        _write(path, checkpoint, quantisation, rounding or _nearest)
        fields = {**wanted, "sha256": _digest(path), "bytes": path.stat().st_size}
        store.write_json(store.sidecar_path(path), {**fields, "seconds": time.perf_counter() - start})
    return path


def _nearest(_name: str, weight: Array, bits: int, block_size: int) -> Blocks:
    return blocks.rounded(weight, bits, block_size)


def _is_current(path: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether the file is there, of these weights and in this form, byte for byte what was written."""
    if not path.is_file():
        return False
    record = store.records.read_if_valid(QuantisedRecord, store.sidecar_path(path))
    return record is not None and record.matches(wanted) and record.sha256 == _digest(path)


def _digest(path: Path) -> str:
    """SHA-256 of the file, taken once a content: every export asks for it, and again where it is read."""
    return str(store.weights.state(path, full=True).sha256)


# ---- writing --------------------------------------------------------------------------------------------


def _write(path: Path, checkpoint: Checkpoint, quantisation: Quantisation, rounding: Rounding) -> None:
    """Writes header, scales and values; of each weight nothing stays in memory."""
    head = f"{rules_of(checkpoint.config['model_type']).head}.weight"
    weights = linear_weights(checkpoint)
    bits = {name: quantisation.head_bits if name == head else quantisation.bits for name in weights}
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
    for part in (_SCALES, _VALUES):
        for name, tensor in weights.items():
            out, width = tensor.shape
            if part == _SCALES:
                dtype, shape = "F16", [width // quantisation.block_size, out]
            else:
                dtype, shape = ("I8", [width, out]) if bits[name] == 8 else ("U8", [width * out // 2])
            begin, end = end, end + int(np.prod(shape)) * safetensors_index.ITEM_SIZES[dtype]
            entries[f"{name}{part}"] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
            ranges.setdefault(name, []).append((begin, end))
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 64)
    return len(text).to_bytes(8, "little") + text, {name: (a, b) for name, (a, b) in ranges.items()}


# ---- reading --------------------------------------------------------------------------------------------


def is_quantised(tensors: Mapping[str, TensorSlice]) -> bool:
    """Whether the tensors of a file are those of quantised weights."""
    return any(name.endswith(f".weight{_SCALES}") for name in tensors)


def stored(file: Path) -> dict[str, StoredBlocks]:
    """Name of each weight → where its blocks lie.

    Raises:
        UserError: the file is damaged, or its parts do not fit together.
    """
    tensors, found = safetensors_index.read_index([file]), dict[str, StoredBlocks]()
    for key, scales in tensors.items():
        if not key.endswith(_SCALES):
            continue
        name = key.removesuffix(_SCALES)
        values = tensors.get(f"{name}{_VALUES}")
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


def in_blocks(file: Path, activations: Precision | None) -> dict[str, StoredBlocks]:
    """Those of a file's weights that graphs read from it, and not as the checkpoint has them.

    Args:
        file: of the weights.
        activations: the graphs' precision (`names.is_in_blocks`); None for all weights.

    Raises:
        UserError: as `stored`.
    """
    found = stored(file)
    form_bits = min((one.bits for one in found.values()), default=0)
    return {
        name: one
        for name, one in found.items()
        if activations is None or is_in_blocks(one.bits, form_bits, activations)
    }


def dequantised(
    file: Path, activations: Precision | None = None
) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """(name, weight [in, out]) of each weight that graphs of these activations read, one at a time.

    Raises:
        UserError: as `stored`.
    """
    for name, one in in_blocks(file, activations).items():
        data = np.memmap(file, np.uint8, "r", one.values.offset, (one.values.nbytes,)).tobytes()
        scales = safetensors_index.numbers(file, one.scales)
        yield name, blocks.dequantised(Blocks(blocks.unpacked(data, one.bits, one.shape), scales))
