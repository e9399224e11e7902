from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.runtime import tensorrt
from pipeline.runtime.cache import Cache, joined
from pipeline.runtime.device_cache import DeviceCache
from pipeline.runtime.generation.greedy import greedy_batch
from pipeline.runtime.runner import Array, Runner
from pipeline.runtime.tensorrt import Plan, TrtRunner
from pipeline.runtime.tensorrt_library import Profile, Range, Shape
from pipeline.types import UserError
from tests import fake_gpu, fake_tensorrt, toy_engines
from tests.fake_gpu import PLACES, FakeCuda
from tests.fake_tensorrt import Machine
from tests.toy_engines import PLAN, STATIC_PLAN


def shapes(batch: int, new: int, past: int, wanted: int = 1) -> dict[str, Shape]:
    return {
        "input_ids": (batch, new),
        "attention_mask": (batch, new + past),
        "position_ids": (batch, new),
        "logits_positions": (batch, wanted),
        "past_key_values.0.key": (batch, 2, past, 16),
    }


def profile(length: Range, past: Range, wanted: Range) -> Profile:
    at = list(zip((1, 1, 8), length, past, wanted, strict=True))
    return {
        "input_ids": tuple((b, s) for b, s, _, _ in at),
        "attention_mask": tuple((b, s + p) for b, s, p, _ in at),
        "position_ids": tuple((b, s) for b, s, _, _ in at),
        "logits_positions": tuple((b, k) for b, _, _, k in at),
        "past_key_values.0.key": tuple((b, 2, p, 16) for b, _, p, _ in at),
    }


def test_the_profile_is_picked_by_the_shapes() -> None:
    profiles = [
        profile((1, 100, 200), (0, 0, 200), (1, 1, 128)),
        profile((1, 1, 1), (0, 100, 200), (1, 1, 1)),
    ]
    assert tensorrt.pick_profile(profiles, shapes(1, 50, 0)) == 0
    assert tensorrt.pick_profile(profiles, shapes(8, 1, 90)) == 1
    assert tensorrt.pick_profile(profiles, shapes(1, 7, 90)) == 0  # a further chunk of a prompt
    no_past = {name: array for name, array in shapes(1, 1, 90).items() if "past" not in name}
    assert tensorrt.pick_profile([{n: p[n] for n in no_past} for p in profiles], no_past) == 1
    for wrong in (shapes(9, 50, 0), shapes(1, 201, 0), shapes(1, 1, 201), shapes(1, 200, 0, wanted=129)):
        with pytest.raises(UserError, match="was not built for") as caught:
            tensorrt.pick_profile(profiles, wrong)
        assert "\n" not in str(caught.value) and "past_key_values" not in str(caught.value)


class Truth(Runner):
    """The toy model by numpy alone.

    Args:
        weight: of the model.
    """

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    path, inputs, outputs, limits = Path("toy"), fake_gpu.INPUTS, fake_gpu.OUTPUTS, PLAN.limits

    def infer(self, feeds: Any, wanted: list[str] | None = None) -> dict[str, Array]:
        outputs = fake_gpu.toy(feeds, self.weight)
        return {name: outputs[name] for name in wanted or self.outputs}


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[TrtRunner, Machine]]:
    """(what is other of the machine, of the plan) → a runner of the toy engine and its machine."""

    def made(weight: float | None = 1.0, plan: Plan = PLAN, **other: Any) -> tuple[TrtRunner, Machine]:
        machine = fake_tensorrt.install(monkeypatch, Machine(**other))
        return TrtRunner(toy_engines.write(tmp_path / "toy.plan", plan, weight), plan), machine

    return made


def same(runner: Runner, truth: Runner, ids: Array, caches: list[Cache | None], mask: Array) -> list[Cache]:
    """One pass of both → their caches; the logits are equal."""
    (logits, cache), (expected, arrays) = (
        one.forward(
            ids, before, attention_mask=mask, logits_positions=np.array([[0, ids.shape[1] - 1]] * len(ids))
        )
        for one, before in zip((runner, truth), caches, strict=True)
    )
    np.testing.assert_array_equal(logits, expected)
    return [cache, arrays]


def test_steps_of_an_engine_are_those_of_arrays(opened: Any) -> None:
    """A prefill of its own profile, 200 steps, a row joins, one leaves; logits alone leave the GPU."""
    (runner, machine), truth = opened(), Truth()
    rng = np.random.default_rng(0)
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    caches: list[Any] = same(runner, truth, rng.integers(0, 50, (2, 5)), [None, None], mask)
    more: list[Any] = same(
        runner, truth, rng.integers(0, 50, (1, 9)), [None, None], np.ones((1, 9), np.int64)
    )
    caches = [joined(pair) for pair in zip(caches, more, strict=True)]
    mask = np.concatenate([np.pad(mask, ((0, 0), (4, 0))), np.ones((1, 9), np.int64)])
    machine.cuda.to_host = 0
    for step in range(200):
        if step == 20:
            caches, mask = [cache.part([1, 0], 4) for cache in caches], mask[[1, 0], 4:]
        mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
        caches = same(runner, truth, rng.integers(0, 50, (len(mask), 1)), caches, mask)
    assert isinstance(caches[0], DeviceCache) and (caches[0].rows, caches[0].tokens) == mask.shape
    logits_bytes = 2 * fake_gpu.WORDS * 4  # of a row: at two places
    assert machine.cuda.to_host == (20 * 3 + 180 * 2) * logits_bytes
    assert machine.runs == [0, 0] + [1] * 200  # the profile of each
    for name, array in caches[0].arrays().items():
        np.testing.assert_array_equal(array, caches[1].arrays()[name])


def test_two_blocks_of_memory_take_turns(opened: Any) -> None:
    """A hundred steps ask the GPU for memory where 64 more tokens need it; what is closed is free again."""
    runner, machine = opened()
    _, cache = runner.forward(np.ones((1, 1), np.int64))
    addresses = list[int]()
    for _ in range(100):
        _, cache = runner.forward(np.ones((1, 1), np.int64), cache)
        addresses.append(cache.block.address)
    assert len(set(addresses[:60])) == 2 and all(a != b for a, b in itertools.pairwise(addresses))
    kept = cache.part([0], 10)  # a cache that lives on keeps its block
    expected = kept.arrays()
    for _ in range(5):
        _, cache = runner.forward(np.ones((1, 1), np.int64), cache)
    for name, array in kept.arrays().items():
        np.testing.assert_array_equal(array, expected[name])
    del cache, kept
    runner.close()
    assert machine.cuda.blocks == {}


def test_a_static_cache_is_written_in_place(opened: Any) -> None:
    """Its steps, joins and cuts are those of arrays; one block of the GPU's memory serves all steps."""
    (runner, machine), truth = opened(plan=STATIC_PLAN), Truth()
    rng = np.random.default_rng(0)
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    caches: list[Any] = same(runner, truth, rng.integers(0, 50, (2, 5)), [None, None], mask)
    more: list[Any] = same(
        runner, truth, rng.integers(0, 50, (1, 9)), [None, None], np.ones((1, 9), np.int64)
    )
    caches = [joined(pair) for pair in zip(caches, more, strict=True)]
    mask = np.concatenate([np.pad(mask, ((0, 0), (4, 0))), np.ones((1, 9), np.int64)])
    addresses, machine.cuda.to_host = list[int](), 0
    for step in range(30):
        if step == 20:
            caches, mask = [cache.part([1, 0], 4) for cache in caches], mask[[1, 0], 4:]
        mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
        caches = same(runner, truth, rng.integers(0, 50, (len(mask), 1)), caches, mask)
        addresses.append(caches[0].block.address)
    assert len(set(addresses[:20])) == len(set(addresses[20:])) == 1
    assert machine.cuda.to_host == (20 * 3 + 10 * 2) * 2 * fake_gpu.WORDS * 4  # logits alone
    for name, array in caches[0].arrays().items():
        np.testing.assert_array_equal(array, caches[1].arrays()[name])


def test_what_goes_on_from_one_static_cache_twice_does_not_mix(opened: Any) -> None:
    """A step behind a cache whose places another one has taken works on a copy, else in place."""
    (runner, _), truth = opened(plan=STATIC_PLAN), Truth()
    prefix, expected = (one.forward(np.array([[3, 4]]))[1] for one in (runner, truth))
    kept: list[tuple[Cache, Cache]] = []
    for token in (5, 6, 7):
        caches = same(runner, truth, np.array([[token]]), [prefix, expected], np.ones((1, 3), np.int64))
        kept.append((caches[0], caches[1]))
    blocks = {one.block.address for one, _ in kept if isinstance(one, DeviceCache)}
    assert len(blocks) == 3 and prefix.block.address in blocks
    for one, arrays in [*kept, (prefix, expected)]:
        for name, array in one.arrays().items():
            np.testing.assert_array_equal(array, arrays.arrays()[name])
    kept.clear()
    del caches, one
    for token in (8, 9):
        after = same(runner, truth, np.array([[token]]), [prefix, expected], np.ones((1, 3), np.int64))[0]
        assert isinstance(after, DeviceCache) and after.block is prefix.block
        del after


def test_a_static_engine_takes_and_gives_all_places(opened: Any) -> None:
    runner, _ = opened(plan=STATIC_PLAN)
    rng = np.random.default_rng(0)
    feeds = runner.feeds(np.array([[6, 7]]), runner.forward(np.array([[3, 4, 5]]))[1])
    feeds |= {name: rng.normal(size=feeds[name].shape).astype(np.float32) for name in fake_gpu.PASTS}
    expected = fake_gpu.static_toy(feeds)
    outputs = runner.infer(feeds)
    assert set(outputs) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(outputs[name], array)


def test_texts_of_a_static_engine_are_those_of_arrays(opened: Any) -> None:
    """Of prompts of unlike lengths, longer than a pass takes; more than there are places is refused."""
    prompts = [[1, 2, 3], [4], [2, 2, 1, 3, 4, 0, 1] * 3, [3, 1]]
    truth, static = (
        {
            row.number: (row.tokens, row.error)
            for row in greedy_batch(one, prompts, 9, lambda _: False, rows=3)
        }
        for one in (Truth(), opened(plan=STATIC_PLAN)[0])
    )
    assert truth == static and all(len(text) == 9 for text, _ in static.values())
    runner = opened(plan=STATIC_PLAN)[0]
    _, cache = runner.forward(np.ones((1, PLACES), np.int64))
    with pytest.raises(UserError, match=f"its cache holds {PLACES} tokens, and there are {PLACES + 1}"):
        runner.forward(np.ones((1, 1), np.int64), cache)


def test_an_engine_that_does_not_write_in_place_is_refused(opened: Any) -> None:
    with pytest.raises(UserError, match=r"does not write present\.0\.key into past_key_values\.0\.key"):
        opened(plan=STATIC_PLAN, fails="alias")


def test_an_engine_takes_and_gives_arrays_too(opened: Any) -> None:
    (runner, _), truth = opened(), Truth()
    _, cache = truth.forward(np.array([[3, 4, 5]]))
    feeds = truth.feeds(np.array([[6, 7]]), cache)
    expected = truth.infer(feeds)
    outputs = runner.infer(feeds)
    assert list(outputs) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(outputs[name], array)
    assert list(runner.infer(feeds, ["logits"])) == ["logits"]
    logits, kept = runner.step(
        runner.prepared(np.array([[6, 7]]), runner.cache_of(cache.arrays(), 1, 3)), False
    )
    np.testing.assert_array_equal(logits[""], expected["logits"])
    assert kept is None


def test_texts_in_a_batch_are_those_of_arrays(opened: Any) -> None:
    """Also on a GPU whose memory holds one row: the batch is refused, and its rows run one by one."""
    prompts = [[1, 2, 3], [4], [2, 2, 1, 3, 4, 0, 1], [3, 1]]
    texts = [
        {row.number: row.tokens for row in greedy_batch(one, prompts, 9, lambda _: False, rows=3)}
        for one in (Truth(), opened()[0])
    ]
    assert texts[0] == texts[1] and all(len(text) == 9 for text in texts[1].values())


@pytest.mark.parametrize(
    ("fails", "why"),
    [
        ("Runtime", "does not start on this machine, .* driver is too old for it"),
        ("deserialize_cuda_engine", "built for sm90, does not load on this sm90"),
        ("create_execution_context", "no context"),
        ("set_optimization_profile_async", "no context"),
        ("set_input_shape", "takes no shape"),
        ("set_tensor_address", "takes no memory"),
        ("execute_async_v3", "does not run"),
    ],
)
def test_what_tensorrt_refuses_is_one_line(fails: str, why: str, opened: Any) -> None:
    with pytest.raises(UserError, match=why) as caught:
        opened(fails=fails)[0].forward(np.array([[3, 4]]))
    assert ("toy.plan" in str(caught.value)) is (fails != "Runtime") and "\n" not in str(caught.value)
    assert str(caught.value).endswith(f": ERROR the toy's {fails} fails")


def test_an_engine_of_another_version_is_refused(opened: Any) -> None:
    with pytest.raises(UserError, match=r"was built by tensorrt 11\.3, and 11\.4\.0 is installed"):
        opened(plan=replace(PLAN, version="11.3"))


def test_a_stripped_engine_has_the_weights_of_its_graph(tmp_path: Path, opened: Any) -> None:
    graph = tmp_path / "g.onnx"
    graph.write_bytes(b"weights")
    weight = fake_tensorrt.weight_of(graph)
    (runner, _), truth = opened(None, replace(PLAN, weights=graph)), Truth(weight)
    same(runner, truth, np.array([[3, 4]]), [None, None], np.ones((1, 2), np.int64))
    assert weight != 1 and np.isnan(opened(None)[0].forward(np.array([[3, 4]]))[0]).all()


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"fails": "refit_from_file"}, "do not fit the engine: types differ"),
        ({"missing": ["a", "b"]}, "lacks 2 of the weights that the engine needs, a among them"),
        ({"fails": "refit_cuda_engine"}, "could not be refitted"),
    ],
)
def test_an_engine_whose_weights_are_not_all_back_does_not_open(
    other: dict[str, Any], why: str, tmp_path: Path, opened: Any
) -> None:
    (tmp_path / "g.onnx").write_bytes(b"weights")
    with pytest.raises(UserError, match=why) as caught:
        opened(None, replace(PLAN, weights=tmp_path / "g.onnx"), **other)
    assert "\n" not in str(caught.value)


def test_a_gpu_without_room_says_so(opened: Any) -> None:
    """What is spare goes first, then there is no memory, and what is there still stands."""
    runner, machine = opened(cuda=FakeCuda(40_000))
    _, cache = runner.forward(np.ones((1, 20), np.int64))
    before = cache.arrays()
    with pytest.raises(MemoryError, match=r"the GPU has no .* bytes left"):
        joined([cache, *(runner.empty_cache(1) for _ in range(9))])
    for name, array in cache.arrays().items():
        np.testing.assert_array_equal(array, before[name])
    assert runner.forward(np.ones((1, 1), np.int64), cache)[1].tokens == 21
    assert sum(block.size for block in machine.cuda.blocks.values()) <= 40_000
