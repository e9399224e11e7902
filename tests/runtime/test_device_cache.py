"""Memory of the GPU: what is asked for, kept and given back. What caches do with it is in test_cache.py."""

from __future__ import annotations

import numpy as np
import pytest
from polygraphy import cuda

from pipeline.runtime.device_cache import Block, CacheLayout, DeviceCache, DeviceMemory
from tests.fake_gpu import FakeCuda


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> DeviceMemory:
    monkeypatch.setattr(cuda, "wrapper", lambda: FakeCuda(room=10_000))
    return DeviceMemory()


def test_a_block_that_is_dropped_is_the_next_ones_of_its_size(memory: DeviceMemory) -> None:
    first = Block(memory, 1000)
    address = first.address
    assert first.nbytes == 1024 and Block(memory, 0).nbytes == 256
    del first
    assert Block(memory, 1001).address == address
    four = [Block(memory, 1000) for _ in range(4)]
    del four
    assert len(memory.spare[1024]) == 2 and memory.cuda.allocations == 5


def test_what_is_spare_makes_room_for_another_size(memory: DeviceMemory) -> None:
    two = [Block(memory, 4000) for _ in range(2)]
    del two
    large = Block(memory, 9000)
    assert large.nbytes == 9216 and memory.spare == {4096: []}
    with pytest.raises(MemoryError, match="no 10240 bytes left"):
        Block(memory, 10_000)


def test_what_lives_longer_than_the_runner_is_freed_when_it_goes(memory: DeviceMemory) -> None:
    block = Block(memory, 1000)
    memory.close()
    assert len(memory.cuda.blocks) == 1
    del block
    assert memory.cuda.blocks == {}


def test_tensors_lie_behind_each_other_and_begin_where_tensorrt_wants_them(memory: DeviceMemory) -> None:
    half = np.dtype(np.float16)
    layout = CacheLayout({"a": (3, 5, half), "b": (1, 7, half)})
    offsets, nbytes = layout.offsets(2, 65)  # room for 128 tokens
    assert offsets == {"a": 0, "b": 7680} and nbytes == 7680 + 3584 and layout.token_bytes == 44
    cache = DeviceCache(CacheLayout({"a": (2, 4, half)}), memory, 3, 5)
    assert (
        cache.nbytes == 3 * 5 * 16 and cache.block.nbytes == 3 * 64 * 16 and cache.shape("a") == (3, 2, 5, 4)
    )
