from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from polygraphy import cuda

from pipeline.runtime import tensorrt
from pipeline.runtime.cache import Cache, joined
from pipeline.runtime.device_cache import DeviceCache
from pipeline.runtime.generation.greedy import greedy_batch
from pipeline.runtime.runner import Array, Limits, Runner
from pipeline.runtime.tensorrt import Plan, TrtRunner
from pipeline.runtime.tensorrt_library import Profile, Range, Shape
from pipeline.types import UserError
from tests import fake_gpu
from tests.fake_gpu import FakeCuda, FakeEngine


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


class FakeRefit:
    """TensorRT's refit API as far as it is used, with each way to fail."""

    __name__ = "fake"

    class ILogger:
        Severity = SimpleNamespace(VERBOSE=0)

    def __init__(self, fits: bool = True, missing: tuple[str, ...] = (), done: bool = True) -> None:
        self.fits, self.missing, self.done, self.refitted = fits, missing, done, False
        self.num_errors = 1

    def Refitter(self, engine: Any, logger: Any) -> Any:  # noqa: N802 - TensorRT's name
        return self

    def OnnxParserRefitter(self, refitter: Any, logger: Any) -> Any:  # noqa: N802 - TensorRT's name
        return self

    def refit_from_file(self, path: str) -> bool:
        return self.fits

    def get_error(self, index: int) -> Any:
        return SimpleNamespace(desc=lambda: "types\ndiffer")

    def get_missing_weights(self) -> list[str]:
        return list(self.missing)

    def refit_cuda_engine(self) -> bool:
        self.refitted = self.done
        return self.done


def test_refit_fails_unless_every_weight_is_back() -> None:
    good = FakeRefit()
    tensorrt.refit(good, None, Path("g.onnx"))
    assert good.refitted
    for fake, why in (
        (FakeRefit(fits=False), "do not fit the engine: types differ"),
        (FakeRefit(missing=("a", "b")), "lacks 2 of the weights that the engine needs, a among them"),
        (FakeRefit(done=False), "could not be refitted"),
    ):
        with pytest.raises(UserError, match=why):
            tensorrt.refit(fake, None, Path("g.onnx"))
        assert not fake.refitted


G, D = fake_gpu.HEADS, fake_gpu.DIM
WIDE: Profile = {
    name: ((1, 1), (1, 50), (999, 999)) for name in fake_gpu.INPUTS if not name.startswith("past_key_values.")
} | dict.fromkeys(fake_gpu.PASTS, ((1, G, 0, D), (1, G, 0, D), (999, G, 999, D)))
DECODING: Profile = WIDE | dict.fromkeys(("input_ids", "position_ids"), ((1, 1), (1, 1), (9, 1)))
PLAN = Plan("tensorrt", "11", ("sm90",), (WIDE, DECODING), Limits(batch=9, new=999, past=999, wanted=9))


class Truth(Runner):
    """The toy model by numpy alone."""

    path, inputs, outputs, limits = Path("toy"), fake_gpu.INPUTS, fake_gpu.OUTPUTS, PLAN.limits

    def infer(self, feeds: Any, wanted: list[str] | None = None) -> dict[str, Array]:
        outputs = fake_gpu.toy(feeds)
        return {name: outputs[name] for name in wanted or self.outputs}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[TrtRunner, FakeCuda, FakeEngine]]:
    """(room on the GPU, what fails) → a runner of the toy engine, the GPU and the engine."""

    def made(room: int = 1 << 30, fails: str = "") -> tuple[TrtRunner, FakeCuda, FakeEngine]:
        gpu = FakeCuda(room)
        engine = FakeEngine(gpu, fails)
        monkeypatch.setattr(cuda, "wrapper", lambda: gpu)
        monkeypatch.setattr(tensorrt, "_load", lambda *_: (engine, fake_gpu.TRT))
        return TrtRunner(Path("toy.plan"), PLAN), gpu, engine

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
    (runner, gpu, engine), truth = opened(), Truth()
    rng = np.random.default_rng(0)
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    caches: list[Any] = same(runner, truth, rng.integers(0, 50, (2, 5)), [None, None], mask)
    more: list[Any] = same(
        runner, truth, rng.integers(0, 50, (1, 9)), [None, None], np.ones((1, 9), np.int64)
    )
    caches = [joined(pair) for pair in zip(caches, more, strict=True)]
    mask = np.concatenate([np.pad(mask, ((0, 0), (4, 0))), np.ones((1, 9), np.int64)])
    gpu.to_host = 0
    for step in range(200):
        if step == 20:
            caches, mask = [cache.part([1, 0], 4) for cache in caches], mask[[1, 0], 4:]
        mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
        caches = same(runner, truth, rng.integers(0, 50, (len(mask), 1)), caches, mask)
    assert isinstance(caches[0], DeviceCache) and (caches[0].rows, caches[0].tokens) == mask.shape
    assert gpu.to_host == (20 * 3 + 180 * 2) * 2 * fake_gpu.WORDS * 4  # logits at two places of every row
    assert [context.profile for context in engine.contexts] == [0, 1] and [
        c.runs for c in engine.contexts
    ] == [2, 200]
    for name, array in caches[0].arrays().items():
        np.testing.assert_array_equal(array, caches[1].arrays()[name])


def test_two_blocks_of_memory_take_turns(opened: Any) -> None:
    """A hundred steps ask the GPU for memory where 64 more tokens need it; what is closed is free again."""
    runner, gpu, _ = opened()
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
    assert gpu.blocks == {}


def test_an_engine_takes_and_gives_arrays_too(opened: Any) -> None:
    (runner, _, _), truth = opened(), Truth()
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
        ("context", "no context"),
        ("profile", "no context"),
        ("shape", "takes no shape"),
        ("address", "takes no memory"),
        ("execute", "does not run"),
    ],
)
def test_what_tensorrt_refuses_is_one_line(fails: str, why: str, opened: Any) -> None:
    with pytest.raises(UserError, match=why) as caught:
        opened(fails=fails)[0].forward(np.array([[3, 4]]))
    assert "toy.plan" in str(caught.value) and "\n" not in str(caught.value)


def test_a_gpu_without_room_says_so(opened: Any) -> None:
    """What is spare goes first, then there is no memory, and what is there still stands."""
    runner, gpu, _ = opened(room=40_000)
    _, cache = runner.forward(np.ones((1, 20), np.int64))
    before = cache.arrays()
    with pytest.raises(MemoryError, match=r"the GPU has no .* bytes left"):
        joined([cache, *(runner.empty_cache(1) for _ in range(9))])
    for name, array in cache.arrays().items():
        np.testing.assert_array_equal(array, before[name])
    assert runner.forward(np.ones((1, 1), np.int64), cache)[1].tokens == 21
    assert sum(block.size for block in gpu.blocks.values()) <= 40_000
