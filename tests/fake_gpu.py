"""A GPU that is not there, CUDA's calls on memory of the host, and a toy model for it.

Like CUDA's, its calls are queued: nothing has happened before the stream is waited for. Memory that was never
written, and memory that went back, holds NaN; an address outside of what was handed out is an error.

Legend: B rows, S new tokens, P cached tokens, T = P + S, K wanted positions, V vocabulary, G heads, D head
dimension.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from pipeline.runtime.cache import Array
from pipeline.runtime.runner import TensorInfo

STREAM = 77
HEADS, DIM, WORDS = 2, 3, 5
CACHED = (0, 2)
"""Layers whose attention is there."""
PASTS = [f"past_key_values.{i}.{part}" for i in CACHED for part in ("key", "value")]
LONG, FLOAT = np.dtype(np.int64), np.dtype(np.float32)
INPUTS = {
    "input_ids": TensorInfo(LONG, ("batch", "new")),
    "attention_mask": TensorInfo(LONG, ("batch", "total")),
    "position_ids": TensorInfo(LONG, ("batch", "new")),
    "logits_positions": TensorInfo(LONG, ("batch", "wanted")),
    **{name: TensorInfo(FLOAT, ("batch", HEADS, "past", DIM)) for name in PASTS},
}
OUTPUTS = {
    "logits": TensorInfo(FLOAT, ("batch", "wanted", WORDS)),
    **{
        name.replace("past_key_values", "present"): TensorInfo(FLOAT, ("batch", HEADS, "total", DIM))
        for name in PASTS
    },
}


def toy(feeds: Mapping[str, Array], weight: float = 1.0) -> dict[str, Array]:
    """The model: keys and values depend on token, position, head and dimension, logits on what is seen.

    Args:
        feeds: as `INPUTS` has them.
        weight: the only one; it multiplies the logits.
    """
    ids, positions, mask = feeds["input_ids"], feeds["position_ids"], feeds["attention_mask"]
    head, dim = np.arange(HEADS)[None, :, None, None], np.arange(DIM)[None, None, None]
    new = (ids[:, None, :, None] + 0.1 * positions[:, None, :, None] + 10 * head + 0.01 * dim).astype(
        np.float32
    )
    outputs: dict[str, Array] = {}
    seen = np.zeros(mask.shape, np.float32)
    for k, name in enumerate(PASTS):
        whole = np.concatenate([feeds[name], (k + 1) * new], axis=2)
        outputs[name.replace("past_key_values", "present")] = whole
        seen += whole.sum(axis=(1, 3))
    past = mask.shape[1] - ids.shape[1]
    sums = np.cumsum(np.where(mask == 1, seen, 0), axis=1)
    at = np.take_along_axis(sums, past + feeds["logits_positions"], axis=1)
    outputs["logits"] = (weight * at[:, :, None] * np.cos(at[:, :, None] + np.arange(WORDS))).astype(
        np.float32
    )
    return outputs


PLACES = 40
"""N of the toy's static form."""
STATIC_INPUTS = {
    name: TensorInfo(info.dtype, tuple(PLACES if size in ("past", "total") else size for size in info.shape))
    for name, info in INPUTS.items()
} | {"write_indices": TensorInfo(LONG, ("batch",))}
STATIC_OUTPUTS = {
    name: TensorInfo(info.dtype, tuple(PLACES if size == "total" else size for size in info.shape))
    for name, info in OUTPUTS.items()
}


def static_toy(feeds: Mapping[str, Array], weight: float = 1.0) -> dict[str, Array]:
    """The model with a static cache, `STATIC_INPUTS`: each row by itself, its tokens written behind its P.

    What a mask hides counts nothing, but a NaN there spoils everything, as in attention: 0 times it is NaN.
    """
    new, lines = feeds["input_ids"].shape[1], list[dict[str, Array]]()
    for row, past in enumerate(feeds["write_indices"]):
        one = {name: array[row : row + 1] for name, array in feeds.items() if name != "write_indices"}
        mask = one["attention_mask"]
        assert past + new <= PLACES and not mask[:, past + new :].any()
        held = {name: one[name][:, :, :past] for name in PASTS}
        outputs = toy({**one, **held, "attention_mask": mask[:, : past + new]}, weight)
        for name in PASTS:
            outputs["logits"] += 0 * one[name].sum()
            present = name.replace("past_key_values", "present")
            outputs[present] = np.concatenate([outputs[present], one[name][:, :, past + new :]], axis=2)
        lines.append(outputs)
    return {name: np.concatenate([line[name] for line in lines]) for name in OUTPUTS}


class FakeCuda:
    """Polygraphy's wrapper of libcudart, as far as it is used; test_tensorrt_bindings.py holds it to it.

    Args:
        room: bytes that can be had at a time.
    """

    def __init__(self, room: int = 1 << 30) -> None:
        self.room, self.blocks, self.queue = room, dict[int, Any](), list[Callable[[], None]]()
        self.allocations, self.to_host, self.next = 0, 0, 1 << 40
        self.handle = SimpleNamespace(cudaMemcpy2DAsync=self._lines, cudaMemsetAsync=self._set)

    def create_stream(self) -> int:
        return STREAM

    def check(self, status: int) -> None:
        assert status == 0

    def malloc(self, nbytes: int) -> int:
        if nbytes + sum(array.size for array in self.blocks.values()) > self.room:
            raise RuntimeError("CUDA Error: 2")
        address, self.next = self.next, self.next + (nbytes + 4095) // 4096 * 4096
        self.blocks[address] = np.full(nbytes, 0xFF, np.uint8)  # NaN in every floating type
        self.allocations += 1
        return address

    def free(self, ptr: int) -> None:
        self.stream_synchronize(STREAM)
        del self.blocks[ptr]

    def at(self, address: int, nbytes: int) -> Array:
        """The bytes from an address on, which must all be of one block."""
        for start, array in self.blocks.items():
            if start <= address and address + nbytes <= start + array.size:
                return array[address - start : address - start + nbytes]
        raise AssertionError(f"{nbytes} bytes at {address} are nobody's")

    def memcpy(self, dst: int, src: int, nbytes: int, kind: Any, stream_ptr: int) -> None:
        assert stream_ptr == STREAM and kind.value in (1, 2)
        if kind.value == 1:  # what is not pinned is copied away at once
            data = np.frombuffer(ctypes.string_at(src, nbytes), np.uint8)
            self.at(dst, nbytes)
            self.queue.append(lambda: self.at(dst, nbytes).__setitem__(slice(None), data))
        else:
            self.to_host += nbytes
            self.queue.append(lambda: ctypes.memmove(dst, self.at(src, nbytes).tobytes(), nbytes) and None)

    def stream_synchronize(self, ptr: int) -> None:
        assert ptr == STREAM
        while self.queue:
            self.queue.pop(0)()

    def _lines(self, *arguments: Any) -> int:
        target, target_pitch, source, source_pitch, width, height, kind, stream = (a.value for a in arguments)
        assert kind == 3 and stream == STREAM and width <= min(target_pitch, source_pitch)

        def copy() -> None:
            for k in range(height):
                self.at(target + k * target_pitch, width)[:] = self.at(source + k * source_pitch, width)

        self.queue.append(copy)
        return 0

    def _set(self, address: Any, value: Any, nbytes: Any, stream: Any) -> int:
        assert stream.value == STREAM
        self.queue.append(lambda: self.at(address.value, nbytes.value).fill(value.value))
        return 0
