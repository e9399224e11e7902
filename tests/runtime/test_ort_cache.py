"""Steps whose cache stays with ONNX Runtime, against the same graph fed with arrays; on CPU and CUDA.

On the CPU runners keep their caches in numpy; here they are made to bind, by the code that a GPU runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.engines import opening
from pipeline.evals.bench import contestants
from pipeline.evals.score.prefixes import request
from pipeline.evals.score.scorer import Scorer
from pipeline.graphs import merge
from pipeline.runtime import ort_cache
from pipeline.runtime.cache import Array, Cache, joined
from pipeline.runtime.generation.greedy import greedy_batch
from pipeline.runtime.onnxruntime import OnnxRunner
from pipeline.runtime.ort_cache import OrtCache
from pipeline.runtime.runner import Runner
from pipeline.types import Precision
from tests import needs
from tests.faults import graph

DEVICES = ["cpu", pytest.param("cuda", marks=needs.cuda())]
OpenBoth = Callable[..., tuple[Runner, Runner]]


class ByArrays(Runner):
    """The same graph with every cache going in and out as numpy, by what `Runner` does on its own."""

    def __init__(self, inner: Runner) -> None:
        self.inner, self.path, self.inputs, self.outputs = inner, inner.path, inner.inputs, inner.outputs
        self.embedding_rows = inner.embedding_rows

    def infer(self, feeds: Any, wanted: list[str] | None = None) -> dict[str, Array]:
        return self.inner.infer(feeds, wanted)


@pytest.fixture
def both(workdir: Path) -> Iterator[OpenBoth]:
    """(device, variant, precision) → the runner on that device, and the truth."""
    runners = list[Runner]()

    def opened(device: str, variant: str = "base", precision: Precision = "fp32") -> tuple[Runner, Runner]:
        path = graph(workdir, variant, precision)
        runners.append(binding(opening.open_runner(path, threads=1, provider=device)))
        truth = runners[0] if device == "cpu" else opening.open_runner(path, threads=1)
        return runners[0], ByArrays(truth)

    yield opened
    for runner in runners:
        runner.close()


def binding(runner: Runner) -> Runner:
    assert isinstance(runner, OnnxRunner)
    runner.keeps_values = True
    return runner


def close(values: Array, truth: Array, device: str) -> None:
    """On the CPU the two run the same kernels on the same numbers."""
    tolerance = 0.0 if device == "cpu" else (2e-2 if truth.dtype == np.float16 else 1e-3)
    np.testing.assert_allclose(values, truth, rtol=0, atol=tolerance, strict=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("variant", "precision"), [("base", "fp32"), ("base", "fp16"), ("attn0", "fp32"), ("attn0-1", "fp32")]
)
def test_steps_are_those_of_arrays(device: str, variant: str, precision: Precision, both: OpenBoth) -> None:
    """40 steps of a batch: a row joins, rows leave and their padding with them."""
    runner, truth = both(device, variant, precision)
    rng = np.random.default_rng(0)
    ids = rng_ids(rng, 2, 5)
    state = [[one, *prefill(one, ids)] for one in (runner, truth)]
    mask = np.ones((2, 5), np.int64)
    for step in range(40):
        if step % 9 == 4:  # a row of another length joins
            ids = rng_ids(rng, 1, int(rng.integers(1, 9)))
            mask = joined_mask(mask, ids.shape[1])
            for entry in state:
                entry[2] = joined([entry[2], prefill(entry[0], ids)[1]])
        if step % 9 == 8:
            rows, first = [len(mask) - 1, 0], int(mask[[-1, 0]].any(axis=0).argmax())
            mask = mask[rows, first:]
            for entry in state:
                entry[2] = entry[2].part(rows, first)
        mask, new = np.pad(mask, ((0, 0), (0, 1)), constant_values=1), rng_ids(rng, len(mask), 1)
        for entry in state:
            entry[1], entry[2] = entry[0].forward(new, entry[2], attention_mask=mask)
        (_, logits, cache), (_, expected, arrays) = state
        assert isinstance(cache, OrtCache) and (cache.rows, cache.tokens) == mask.shape
        assert {value.device_name() for value in cache.values.values()} <= {device}
        assert cache.nbytes == arrays.nbytes
        close(logits, expected, device)
    for name, array in cache.arrays().items():
        close(array, arrays.arrays()[name], device)


def rng_ids(rng: np.random.Generator, rows: int, tokens: int) -> Array:
    return rng.integers(3, 96, (rows, tokens))


def prefill(runner: Runner, ids: Array) -> tuple[Array, Cache]:
    return runner.forward(ids)


def joined_mask(mask: Array, tokens: int) -> Array:
    longest = max(mask.shape[1], tokens)
    row = np.ones((1, tokens), np.int64)
    return np.concatenate([np.pad(m, ((0, 0), (longest - m.shape[1], 0))) for m in (mask, row)])


@pytest.mark.parametrize("device", DEVICES)
def test_a_merged_graph_keeps_each_variants_own_cache(device: str, workdir: Path) -> None:
    path = merge.merge([graph(workdir), graph(workdir, "mlp0")])
    with opening.open_runner(path, provider=device) as runner, opening.open_runner(path) as truth:
        binding(runner)
        states = [(one, one.step(one.prepared(np.arange(5, 11)[None]))) for one in (runner, ByArrays(truth))]
        (logits, cache), (expected, arrays) = (
            one.step(one.prepared(np.array([[7]]), cache)) for one, (_, cache) in states
        )
        assert set(logits) == {"base", "mlp0"} and cache is not None and arrays is not None
        assert any(name.endswith(".mlp0") for name in cache.arrays())
        for head in logits:
            close(logits[head], expected[head], device)


@pytest.mark.parametrize("device", DEVICES)
def test_no_cache_comes_to_the_host(device: str, both: OpenBoth, monkeypatch: pytest.MonkeyPatch) -> None:
    """In batches that rows join and leave, in scoring with shared prefixes, in what `bench --decode` runs."""
    runner, truth = both(device)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 96, n).tolist() for n in (3, 40, 9, 1, 17)]
    shared = rng.integers(3, 96, 30).tolist()
    pairs = [([*shared, *prompts[k % 5][:9]], [5 + k, 7]) for k in range(9)] + [(prompts[1], [9])]

    def results(one: Runner) -> tuple[list[list[int]], dict[int, Any], int]:
        texts = {row.number: row.tokens for row in greedy_batch(one, prompts, 12, lambda _: False, rows=3)}
        answers: dict[int, Any] = {}
        scorer = Scorer(one, batch_tokens=64)
        scorer.run([request(*pair, 96) for pair in pairs], answers.__setitem__)
        return [texts[k] for k in sorted(texts)], answers, scorer.work.tokens

    expected = results(truth)
    monkeypatch.setattr(OrtCache, "arrays", lambda _: pytest.fail("the cache came to the host"))
    monkeypatch.setattr(runner, "infer", lambda *_: pytest.fail("the cache came to the host"))
    texts, answers, tokens = results(runner)
    assert texts == expected[0] and tokens == expected[2] < sum(len(a) + len(b) for a, b in pairs)
    for number, answer in answers.items():
        assert answer[""][0] == pytest.approx(
            expected[1][number][""][0], abs=1e-5 if device == "cpu" else 1e-3
        )
    monkeypatch.setattr(contestants.opening, "open_runner", lambda *_, **__: runner)
    step = contestants._graph_start(runner.path, 1, decode=True)(np.array([[prompts[1]], [prompts[1][::-1]]]))
    assert step(0).shape == (1, 1, 96) and not np.array_equal(step(0), step(1))


@pytest.mark.parametrize("act", ["join", "cut"])
def test_what_finds_no_memory_says_so_in_one_line(
    act: str, both: OpenBoth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime has no exception of its own for it; the batch goes on without the row that would join."""
    runner, _ = both("cpu")
    _, cache = runner.forward(np.full((2, 4), 5))

    def full(*_: Any) -> None:
        raise RuntimeError("Failed to allocate memory for requested buffer of size 1073741824\nat line 3")

    monkeypatch.setattr(ort_cache, "run_bound", full)
    with pytest.raises(MemoryError, match=r"^Failed to allocate memory .* of size 1073741824$"):
        _ = joined([cache, runner.empty_cache(1)]) if act == "join" else cache.part([1])
