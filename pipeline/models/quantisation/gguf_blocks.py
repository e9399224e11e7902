"""The blocks of a GGUF that ONNX can say as they are, and the way back: what was rounded once stays so.

Q4_0 is d · q with q in −8 … 7, Q8_0 is d · q with q in −128 … 127, both in blocks of 32 with d in float16.
Q4_1, Q5 and the K-quants have an offset, more levels or scales of scales: they have no such form.
Source: ggml's `ggml-quants.c`; the `gguf` package's `quants.py`.

Legend: B block size, 32. A tensor is [out, in] in the file, a weight [in, out] here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gguf as library
import numpy as np
import numpy.typing as npt

from pipeline.models.gguf import tensors
from pipeline.models.gguf.dialects import of_model_type
from pipeline.models.gguf.header import GgufTensor
from pipeline.models.quantisation.blocks import LEAST_SCALE, Blocks
from pipeline.types import UserError

Kind = library.GGMLQuantizationType
BITS = {Kind.Q4_0: 4, Kind.Q8_0: 8}
"""How numbers are stored that ONNX can say → their bits."""
KINDS = {bits: kind for kind, bits in BITS.items()}
BLOCK_SIZE = 32


@dataclass(frozen=True, slots=True)
class GgufWeight:
    """A linear layer's weight that a GGUF keeps in blocks which ONNX can say.

    Attributes:
        tensor: where it lies.
        heads: of Llama's q or k, whose outputs llama.cpp has in another order; None of every other.
    """

    tensor: GgufTensor
    heads: int | None = None

    @property
    def bits(self) -> int:
        """4 or 8."""
        return BITS[self.tensor.kind]

    def blocks(self) -> Blocks | None:
        """Its own blocks, in Hugging Face's order of outputs.

        Returns:
            None where a scale of 8 bits is negative, which llama.cpp never writes and TensorRT refuses.

        Raises:
            UserError: a scale is NaN or infinite.
        """
        scales, values = _read(self.tensor)
        if not np.isfinite(scales).all():
            raise UserError(f"{self.tensor.file}: {self.tensor.name} holds NaN or infinity")
        if self.bits == 8 and (scales < 0).any():
            return None
        values[scales == 0] = 0
        scales[scales == 0] = LEAST_SCALE
        outputs = len(scales)
        by_input = np.ascontiguousarray(self._ordered(values.reshape(outputs, -1)).T)
        return Blocks(by_input, np.ascontiguousarray(self._ordered(scales).T))

    def _ordered(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return rows if self.heads is None else tensors.undo_permutation(rows, self.heads)


def weights(stored: Mapping[str, GgufTensor], config: Mapping[str, Any]) -> dict[str, GgufWeight]:
    """Name in the checkpoint → where its own blocks are, of the linear layers that have some.

    A tied head has the blocks of the embedding.

    Args:
        stored: llama.cpp's name, with the checkpoint's numbers of layers, → tensor (`gguf.origins`).
        config: of the checkpoint, normalised.
    """
    dialect = of_model_type(config["model_type"])
    names = {theirs: own for theirs, (own, _) in tensors.places(config, dialect).items()}
    names["token_embd.weight"] = "lm_head.weight"  # an embedding that is only looked up is no linear layer
    if not config["tie_word_embeddings"]:
        del names["token_embd.weight"]
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    return {
        own: GgufWeight(stored[theirs], heads.get(own.split(".")[-2]) if dialect.permuted else None)
        for theirs, own in names.items()
        if theirs in stored and stored[theirs].kind in BITS and len(stored[theirs].shape) == 2
    }


def written(own: Blocks, bits: int) -> npt.NDArray[np.uint8]:
    """[out, bytes of a row]: a weight as a GGUF keeps it, in its own numbers and scales.

    Args:
        own: in blocks of 32.
        bits: 4 gives Q4_0, 8 gives Q8_0.
    """
    assert own.block_size == BLOCK_SIZE, "no type of llama.cpp's has other blocks of these bits"
    outputs = own.values.shape[1]
    scales = np.ascontiguousarray(own.scales.T)[..., None].view(np.uint8)
    values = np.ascontiguousarray(own.values.T).reshape(outputs, -1, BLOCK_SIZE)
    packed: npt.NDArray[np.uint8] = values.view(np.uint8)
    if bits == 4:
        low, high = np.split((values + np.int8(8)).view(np.uint8), 2, axis=-1)
        packed = low | high << np.uint8(4)
    return np.concatenate([scales, packed], axis=-1).reshape(outputs, -1)


def _read(tensor: GgufTensor) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.int8]]:
    """(scales [out, in / B], values [out, in / B, B]) in the order of the file."""
    blocks = tensor.stored().reshape(tensor.shape[0], tensor.shape[1] // BLOCK_SIZE, -1)
    scales = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0]
    packed = blocks[..., 2:]
    if tensor.kind == Kind.Q8_0:
        return scales, np.array(packed).view(np.int8)
    # Of a block, the first half of the numbers is in the lower halves of the bytes.
    return scales, np.concatenate([packed & 15, packed >> 4], axis=-1).view(np.int8) - np.int8(8)
