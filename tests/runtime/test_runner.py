"""What follows from the contract alone: feeds, caches and logits over a backend that echoes its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from pipeline.runtime.runner import Array, Runner, TensorInfo
from pipeline.types import UserError

INT, HALF = np.dtype(np.int64), np.dtype(np.float16)


class Echo(Runner):
    """Two cached layers, G = 2, D = 4; logits of V = 3 are the positions, and the cache grows by ones."""

    path = Path("echo.onnx")

    def __init__(self, gathers: bool = True, heads: tuple[str, ...] = ("",)) -> None:
        names = ["input_ids", "attention_mask", "position_ids", *(["logits_positions"] if gathers else [])]
        self.inputs = {name: TensorInfo(INT, ("batch", "sequence")) for name in names}
        caches = [f"{layer}.{x}" for layer in (0, 2) for x in ("key", "value")]
        shape = ("batch", 2, "past", 4)
        self.inputs |= {f"past_key_values.{name}": TensorInfo(HALF, shape) for name in caches}
        logits = [f"logits.{head}" if head else "logits" for head in heads]
        self.outputs = {name: TensorInfo(HALF, ("batch", "wanted", 3)) for name in logits}
        self.outputs |= {f"present.{name}": TensorInfo(HALF, shape) for name in caches}
        self.wanted: list[str] | None = None

    def infer(self, feeds: Mapping[str, Array], wanted: list[str] | None = None) -> dict[str, Array]:
        assert set(feeds) == set(self.inputs)
        self.wanted = wanted
        at = feeds.get("logits_positions", np.arange(feeds["input_ids"].shape[1])[None])
        batch, new = feeds["input_ids"].shape
        at = np.broadcast_to(at, (batch, at.shape[1]))
        results: dict[str, Array] = {}
        for name in wanted or list(self.outputs):
            if name.startswith("logits"):
                results[name] = np.repeat(at[:, :, None], 3, axis=2).astype(np.float16)
            else:
                past = feeds[name.replace("present.", "past_key_values.")]
                results[name] = np.concatenate([past, np.ones((batch, 2, new, 4), np.float16)], axis=2)
        return results


def test_the_empty_cache_has_no_token_and_the_graphs_precision() -> None:
    empty = Echo().empty_cache(3)
    cache = empty.arrays()
    assert (empty.rows, empty.tokens, empty.nbytes) == (3, 0, 0)
    assert set(cache) == {f"past_key_values.{i}.{x}" for i in (0, 2) for x in ("key", "value")}
    assert {(array.shape, array.dtype) for array in cache.values()} == {((3, 2, 0, 4), HALF)}
    assert Echo().cache_bytes == 4 * 2 * 4 * 2 and Echo().has_cache


def test_a_cache_without_fixed_heads_is_refused() -> None:
    runner = Echo()
    runner.inputs["past_key_values.0.key"] = TensorInfo(HALF, ("batch", "heads", "past", 4))
    with pytest.raises(UserError, match="has no fixed number of heads"):
        runner.empty_cache(1)


def test_feeds_are_filled_in() -> None:
    """The mask is all ones over T = P + S, rows count unmasked tokens, the last logits are wanted."""
    runner = Echo()
    arrays = {name: np.zeros((2, 2, 3, 4), np.float16) for name in runner.cache_shapes()}
    cache = runner.cache_of(arrays, 2, 3)
    feeds = runner.feeds(np.array([[5, 6], [7, 8]]), cache)
    assert feeds["attention_mask"].tolist() == [[1] * 5] * 2
    assert feeds["position_ids"].tolist() == [[3, 4]] * 2 and feeds["logits_positions"].tolist() == [[1]] * 2
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    feeds = runner.feeds(np.array([[5, 6], [7, 8]]), cache, attention_mask=mask)
    assert feeds["position_ids"].tolist() == [[1, 2], [3, 4]]
    assert all(array.dtype == runner.inputs[name].dtype for name, array in feeds.items())


def test_forward_gives_logits_where_they_are_wanted_and_a_cache_of_all_tokens() -> None:
    runner = Echo()
    ids = np.array([[5, 6, 7]])
    logits, cache = runner.forward(ids)
    assert logits.tolist() == [[[2, 2, 2]]] and cache.arrays()["past_key_values.2.value"].shape == (
        1,
        2,
        3,
        4,
    )
    logits, cache = runner.forward(ids, cache, logits_positions=np.array([[0, 2]]))
    assert logits[0, :, 0].tolist() == [0, 2] and cache.arrays()["past_key_values.0.key"].shape == (
        1,
        2,
        6,
        4,
    )
    assert (cache.rows, cache.tokens) == (1, 6)


def test_logits_of_every_position_are_read_where_they_are_wanted() -> None:
    runner = Echo(gathers=False)
    assert not runner.gathers and Echo().gathers
    logits, _ = runner.forward(np.array([[5, 6, 7, 8]]), logits_positions=np.array([[3, 1]]))
    assert logits[0, :, 0].tolist() == [3, 1]


def test_a_merged_graph_has_a_head_a_variant_and_a_cache_that_need_not_leave() -> None:
    runner = Echo(heads=("base", "attn1"))
    assert runner.heads == ["base", "attn1"] and Echo().heads == [""]
    logits, cache = runner.step(runner.prepared(np.array([[5, 6]])), keep_cache=False)
    assert set(logits) == {"base", "attn1"} and cache is None
    assert runner.wanted == ["logits.base", "logits.attn1"]


class StaticEcho(Echo):
    """The same with a static cache of N = 6 places, where rows are written from `write_indices` on."""

    def __init__(self) -> None:
        super().__init__()
        shape = ("batch", 2, 6, 4)
        for infos in (self.inputs, self.outputs):
            infos |= {name: TensorInfo(HALF, shape) for name in infos if name.endswith(("key", "value"))}
        self.inputs["write_indices"] = TensorInfo(INT, ("batch",))

    def infer(self, feeds: Mapping[str, Array], wanted: list[str] | None = None) -> dict[str, Array]:
        assert set(feeds) == set(self.inputs)
        assert feeds["attention_mask"].shape[1] == 6
        results = {}
        for name in wanted or list(self.outputs):
            if name.startswith("logits"):
                results[name] = np.zeros((len(feeds["input_ids"]), 1, 3), np.float16)
                continue
            results[name] = feeds[name.replace("present.", "past_key_values.")].copy()
            assert results[name].shape[2] == 6
            ids = feeds["input_ids"]
            for row, at in enumerate(feeds["write_indices"]):
                results[name][row, :, at : at + ids.shape[1]] = ids[row, :, None]
        return results


def test_a_static_cache_is_widened_for_the_artefact_and_cut_for_the_caller() -> None:
    runner = StaticEcho()
    assert runner.max_tokens == 6 and Echo().max_tokens is None
    _, cache = runner.forward(np.array([[5, 6], [7, 8]]))
    _, cache = runner.forward(np.array([[9], [4]]), cache, attention_mask=np.array([[0, 1, 1], [1, 1, 1]]))
    assert (cache.rows, cache.tokens) == (2, 3)
    for array in cache.arrays().values():
        assert array[:, 1, :, 2].tolist() == [[5, 6, 9], [7, 8, 4]]
    feeds = runner.feeds(np.array([[5, 6], [7, 8]]), cache)
    assert feeds["write_indices"].tolist() == [3, 3] and feeds["past_key_values.0.key"].shape == (2, 2, 6, 4)
    assert feeds["attention_mask"].tolist() == [[1] * 5 + [0]] * 2


def test_a_static_cache_that_is_full_is_refused_before_it_runs() -> None:
    runner = StaticEcho()
    _, cache = runner.forward(np.array([[5, 6, 7, 8, 9]]))
    _, cache = runner.forward(np.array([[5]]), cache)
    with pytest.raises(UserError, match="its cache holds 6 tokens, and there are 7; export it with more"):
        runner.forward(np.array([[5]]), cache)
