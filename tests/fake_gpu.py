"""A GPU and a TensorRT engine that are not there: CUDA's calls on memory of the host, and a toy model.

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


def toy(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The model: keys and values depend on token, position, head and dimension, logits on what is seen."""
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
    outputs["logits"] = (at[:, :, None] * np.cos(at[:, :, None] + np.arange(WORDS))).astype(np.float32)
    return outputs


class FakeCuda:
    """Polygraphy's wrapper of libcudart, as far as it is used.

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

    def free(self, address: int) -> None:
        self.stream_synchronize(STREAM)
        del self.blocks[address]

    def at(self, address: int, nbytes: int) -> Array:
        """The bytes from an address on, which must all be of one block."""
        for start, array in self.blocks.items():
            if start <= address and address + nbytes <= start + array.size:
                return array[address - start : address - start + nbytes]
        raise AssertionError(f"{nbytes} bytes at {address} are nobody's")

    def memcpy(self, target: int, source: int, nbytes: int, kind: Any, stream: int) -> None:
        assert stream == STREAM and kind.value in (1, 2)
        if kind.value == 1:  # what is not pinned is copied away at once
            data = np.frombuffer(ctypes.string_at(source, nbytes), np.uint8)
            self.at(target, nbytes)
            self.queue.append(lambda: self.at(target, nbytes).__setitem__(slice(None), data))
        else:
            self.to_host += nbytes
            self.queue.append(
                lambda: ctypes.memmove(target, self.at(source, nbytes).tobytes(), nbytes) and None
            )

    def stream_synchronize(self, stream: int) -> None:
        assert stream == STREAM
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


class FakeContext:
    """An execution context of the toy model.

    Args:
        cuda: whose memory it reads and writes.
        fails: the call that does not work.
    """

    def __init__(self, cuda: FakeCuda, fails: str = "") -> None:
        self.cuda, self.fails, self.profile, self.runs = cuda, fails, -1, 0
        self.shapes, self.addresses = dict[str, tuple[int, ...]](), dict[str, int]()

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert stream == STREAM
        self.profile = profile
        return self.fails != "profile"

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name in INPUTS and isinstance(shape, tuple)
        self.shapes[name] = shape
        return self.fails != "shape"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (*self.shapes["logits_positions"], WORDS) if name == "logits" else (-1,)

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % 256 == 0 and address
        self.addresses[name] = address
        return self.fails != "address"

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == STREAM and set(self.addresses) == {*INPUTS, *OUTPUTS}
        self.runs += 1
        shapes, addresses = dict(self.shapes), dict(self.addresses)

        def read(name: str) -> Array:
            dtype, shape = INPUTS[name].dtype, shapes[name]
            data = self.cuda.at(addresses[name], int(np.prod(shape)) * dtype.itemsize)
            return np.ndarray(shape, dtype, data.tobytes())

        def run() -> None:
            for name, array in toy({name: read(name) for name in INPUTS}).items():
                self.cuda.at(addresses[name], array.nbytes)[:] = np.frombuffer(array.tobytes(), np.uint8)

        self.cuda.queue.append(run)
        return self.fails != "execute"


class FakeEngine:
    """An engine of the toy model.

    Args:
        cuda: of the GPU that it lies on.
        fails: the call of its contexts that does not work; 'context' for their making.
    """

    num_io_tensors = len(INPUTS) + len(OUTPUTS)

    def __init__(self, cuda: FakeCuda, fails: str = "") -> None:
        self.cuda, self.fails = cuda, fails
        self.contexts = list[FakeContext]()

    def get_tensor_name(self, k: int) -> str:
        return [*INPUTS, *OUTPUTS][k]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(d if isinstance(d, int) else -1 for d in (INPUTS | OUTPUTS)[name].shape)

    def get_tensor_dtype(self, name: str) -> np.dtype[Any]:
        return (INPUTS | OUTPUTS)[name].dtype

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name in INPUTS else "out"

    def create_execution_context(self) -> FakeContext | None:
        if self.fails == "context":
            return None
        self.contexts.append(FakeContext(self.cuda, self.fails))
        return self.contexts[-1]


TRT = SimpleNamespace(
    __name__="fake_gpu",
    nptype=lambda dtype: dtype,
    TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
    ILogger=type("ILogger", (), {"Severity": SimpleNamespace(VERBOSE=0)}),
)
"""TensorRT's module, as far as a runner uses it."""
