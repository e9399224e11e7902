"""What is made of a cache: rows and tokens cut out, rows joined; each kind against numpy written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from polygraphy import cuda

from pipeline.runtime.cache import Array, Cache, HostCache, joined, resized
from pipeline.runtime.device_cache import CacheLayout, DeviceCache, DeviceMemory
from pipeline.runtime.ort_cache import CacheSurgeon, OrtCache, uploaded
from tests.fake_gpu import FakeCuda

SHAPES = {"past_key_values.0.key": (2, 3), "past_key_values.2.value": (1, 4)}
"""Two tensors of unlike G and D."""

MakeCache = Callable[[int, int], Cache]


def _options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return options


def _surgeon(dtype: Any) -> CacheSurgeon:
    return CacheSurgeon(
        dict.fromkeys(SHAPES, np.dtype(dtype)),
        sum(heads * dim for heads, dim in SHAPES.values()) * np.dtype(dtype).itemsize,
        "cpu",
        lambda graph: ort.InferenceSession(graph, _options(), providers=["CPUExecutionProvider"]),
    )


@pytest.fixture(params=["host", "ort-float32", "ort-float16", "device-float32", "device-float16"])
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> MakeCache:
    """(B, P) → a cache of numbers that all differ, of each kind and type."""
    kind, _, name = request.param.partition("-")
    dtype, rng = name or "float32", np.random.default_rng(0)
    surgeon = _surgeon(dtype)
    monkeypatch.setattr(cuda, "wrapper", FakeCuda)
    memory = DeviceMemory()
    layout = CacheLayout({name: (*sizes, np.dtype(dtype)) for name, sizes in SHAPES.items()})

    def made(rows: int, tokens: int) -> Cache:
        arrays = {
            name: rng.normal(size=(rows, heads, tokens, dim)).astype(dtype)
            for name, (heads, dim) in SHAPES.items()
        }
        if kind == "host":
            return HostCache(arrays, rows, tokens)
        if kind == "device":
            return DeviceCache(layout, memory, rows, tokens).fill(arrays)
        return OrtCache({name: uploaded(a, "cpu") for name, a in arrays.items()}, rows, tokens, surgeon)

    return made


def same(cache: Cache, expected: dict[str, Array]) -> None:
    """Names, shapes, types and every number."""
    arrays = cache.arrays()
    assert list(arrays) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array, strict=True)
        assert array.shape[::2] == (cache.rows, cache.tokens)
    assert cache.nbytes == sum(array.nbytes for array in expected.values())


@pytest.mark.parametrize(
    ("rows", "first", "end"),
    [
        ([2], 0, None),
        ([0, 2], 3, None),
        ([1], 2, 5),
        ([3, 0, 0, 1], 0, 6),
        ([1, 0, 2, 3], 0, None),
        ([0], 7, 7),
    ],
)
def test_rows_and_tokens_are_cut_out(rows: list[int], first: int, end: int | None, make: MakeCache) -> None:
    whole = make(4, 7)
    before = {name: array.copy() for name, array in whole.arrays().items()}
    same(whole.part(rows, first, end), {name: array[rows, :, first:end] for name, array in before.items()})
    same(whole, before)


def test_the_whole_is_itself(make: MakeCache) -> None:
    whole = make(3, 5)
    assert whole.part([0, 1, 2]) is whole and whole.part(range(3), 0, 5) is whole
    assert whole.part([0, 2, 1]) is not whole and whole.part([0, 1, 2], 1).tokens == 4


@pytest.mark.parametrize(
    "sizes",
    [
        [(1, 4), (2, 4)],
        [(2, 7), (1, 3)],
        [(1, 2), (3, 9)],
        [(1, n) for n in (5, 1, 8, 3, 2)],
        [(2, 0), (1, 4)],
    ],
)
def test_rows_are_joined_and_the_shorter_padded_on_the_left(
    sizes: list[tuple[int, int]], make: MakeCache
) -> None:
    caches = [make(*size) for size in sizes]
    longest = max(tokens for _, tokens in sizes)
    parts = [cache.arrays() for cache in caches]
    same(
        joined(caches),
        {
            name: np.concatenate(
                [
                    np.pad(part[name], ((0, 0), (0, 0), (longest - part[name].shape[2], 0), (0, 0)))
                    for part in parts
                ]
            )
            for name in SHAPES
        },
    )


def test_a_cache_that_several_rows_share_is_copied_once(
    make: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As children of one prefix share it in scoring, beside a row that has none."""
    prefix, other, empty = make(1, 6), make(2, 4), make(1, 0)
    besides = list[int]()
    whole = type(prefix).beside
    monkeypatch.setattr(type(prefix), "beside", lambda a, b: (besides.append(len(b)), whole(a, b))[1])
    cache = joined([prefix, other, prefix, empty, prefix])
    one, two = (
        prefix.arrays(),
        {name: np.pad(a, ((0, 0), (0, 0), (2, 0), (0, 0))) for name, a in other.arrays().items()},
    )
    same(
        cache,
        {n: np.concatenate([one[n], two[n], one[n], np.zeros_like(one[n]), one[n]]) for n in SHAPES},
    )
    assert besides == [2] and joined([prefix]) is prefix
    same(joined([prefix] * 3), {name: np.repeat(array, 3, axis=0) for name, array in one.items()})


def test_many_steps_of_one_life(make: MakeCache) -> None:
    """Rows come and go for 60 steps, as in a batch of the server; numpy keeps the same book."""
    rng = np.random.default_rng(1)
    cache = make(1, 3)
    book = cache.arrays()
    for _ in range(60):
        other = make(int(rng.integers(1, 3)), int(rng.integers(0, 12)))
        longest = max(cache.tokens, other.tokens)
        book = {
            name: np.concatenate(
                [
                    np.pad(a, ((0, 0), (0, 0), (longest - a.shape[2], 0), (0, 0)))
                    for a in (array, other.arrays()[name])
                ]
            )
            for name, array in book.items()
        }
        cache = joined([cache, other])
        if cache.rows > 4:
            rows, first = (
                sorted(rng.choice(cache.rows, 2, replace=False).tolist()),
                int(rng.integers(0, longest)),
            )
            book = {name: array[rows, :, first:] for name, array in book.items()}
            cache = cache.part(rows, first)
        same(cache, book)


def test_a_model_without_attention_counts_rows_and_tokens_alone() -> None:
    surgeon = CacheSurgeon({}, 0, "cpu", lambda _: pytest.fail("there is nothing to run"))
    for make_empty in (lambda b, p: HostCache({}, b, p), lambda b, p: OrtCache({}, b, p, surgeon)):
        cache = joined([make_empty(2, 5), make_empty(1, 9)]).part([0, 2], 4)
        assert (cache.rows, cache.tokens, cache.nbytes, cache.arrays()) == (2, 5, 0, {})


def test_an_array_is_cut_or_widened_with_zeros_along_one_axis() -> None:
    array = np.arange(1, 7, dtype=np.float16).reshape(1, 2, 3)
    assert resized(array, 2, None) is array and resized(array, 2, 3) is array
    assert resized(array, 2, 2).tolist() == [[[1, 2], [4, 5]]]
    assert resized(array, 1, 3).tolist() == [[[1, 2, 3], [4, 5, 6], [0, 0, 0]]]
    assert resized(array, 2, 5).dtype == np.float16
