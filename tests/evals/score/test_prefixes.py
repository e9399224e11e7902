"""The radix tree over requests and the batches that run it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pipeline.evals.score.batches import Scorer
from pipeline.evals.score.caches import PrefixCache
from pipeline.evals.score.prefixes import PASS, Node, request, tree, walk
from pipeline.runtime.runner import Limits, TensorInfo
from tests.bench_score import Blank

TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=40)
PAIRS = st.lists(
    st.tuples(TOKENS, st.lists(st.integers(0, 3), min_size=1, max_size=6)), min_size=1, max_size=25
)


def path(node: Node) -> list[int]:
    """The tokens of a node and its parents, put together from their own pieces."""
    above = path(node.parent) if node.parent else []
    assert node.start == len(above)
    return above + node.tokens[node.start :].tolist()


@settings(max_examples=150, deadline=None, phases=[Phase.generate])
@given(PAIRS, st.integers(1, 50), st.integers(1, 8), st.booleans())
def test_every_target_is_read_once_where_it_is_predicted(pairs, longest, most_wanted, share) -> None:
    requests = [request(context, continuation, 32) for context, continuation in pairs]
    roots = tree(requests, longest, most_wanted, share)
    seen: dict[tuple[int, int], int] = {}
    for node in walk(roots):
        assert path(node) == node.tokens.tolist()
        assert 0 < node.end - node.start <= longest and len(node.wanted) <= most_wanted
        assert all(child.parent is node for child in node.children)
        for position, asked in node.wanted.items():
            assert node.start <= position < node.end
            for number, index in asked:
                assert number in node.requests
                own = requests[number]
                assert position == len(own.tokens) - len(own.targets) + index
                assert own.tokens[: position + 1].tolist() == node.tokens[: position + 1].tolist()
                seen[number, index] = seen.get((number, index), 0) + 1
    assert seen == {
        (number, index): 1 for number, own in enumerate(requests) for index in range(len(own.targets))
    }


def test_what_is_shared_is_in_the_tree_once() -> None:
    shots = list(range(100, 200))
    requests = [
        request([*shots, *range(k * 30, k * 30 + 30)], [choice], 4096)
        for k in range(8)
        for choice in (1, 2, 3, 4)
    ]
    nodes = walk(tree(requests, 1 << 20, 1 << 20))
    assert (
        sum(node.end - node.start for node in nodes) == 100 + 8 * 30
    )  # one-token choices need no token of their own
    tiny = [request([1, 2, k], [5], 4096) for k in range(3)]
    assert all(
        node.parent is None for node in walk(tree(tiny, 1 << 20, 1 << 20))
    )  # two tokens are not worth a pass of PASS
    assert PASS > 4


def test_requests_are_cut_as_the_hf_backend_cuts_them() -> None:
    cut = request(list(range(10)), [20, 21], 6)
    assert cut.tokens.tolist() == [5, 6, 7, 8, 9, 20] and cut.targets.tolist() == [20, 21]
    whole = request([1], [2, 3, 4], 3)
    assert whole.tokens.tolist() == [1, 2, 3]
    for context, continuation, words in (
        ([1], [], "no token"),
        ([], [1], "no token"),
        ([1], [2] * 7, "window holds 6"),
    ):
        with pytest.raises(ValueError, match=words):
            request(context, continuation, 6)


def test_the_least_recently_used_prefix_goes_first() -> None:
    kept = PrefixCache(100)
    rows = {n: np.arange(n, dtype=np.int32) for n in (3, 5, 7)}
    for tokens in rows.values():
        kept.put(tokens, {"k": np.zeros(40, np.int8)})
    assert kept.longest(rows[7], 4)[0] == 0 and kept.longest(rows[7], 7)[0] == 7  # 3 made room for 7
    kept.longest(rows[5], 5)
    kept.put(rows[3], {"k": np.zeros(40, np.int8)})
    assert kept.longest(rows[7], 7)[0] == 5 and kept.held == 80  # 7 was used longer ago than 5
    kept.cool(rows[5])
    kept.put(rows[7], {"k": np.zeros(40, np.int8)})
    assert kept.longest(rows[7], 7)[0] == 7 and kept.longest(rows[5], 5)[0] == 3
    kept.put(rows[5], {"k": np.zeros(101, np.int8)})
    assert kept.longest(rows[5], 5)[0] == 3  # larger than all the room: not kept


class Like(Blank):
    """What a Blank copies from."""

    def __init__(self) -> None:
        names = ("input_ids", "attention_mask", "position_ids", "logits_positions")
        self.path, self.inputs = None, {name: TensorInfo(np.dtype(np.int64), ("B", name)) for name in names}
        super().__init__(self)

    @property
    def cache_bytes(self) -> int:
        return 1000


def watched(
    limits: Limits, batch_tokens: int, pairs: list[tuple[list[int], list[int]]]
) -> tuple[Scorer, list[tuple[int, ...]]]:
    """(the scorer, (B, S, P, K) of every pass)."""
    runner = Like()
    runner.limits = limits
    passes: list[tuple[int, ...]] = []
    step = runner.step

    def noted(feeds, wanted, keep_cache=True):
        batch, new = feeds["input_ids"].shape
        passes.append((batch, new, feeds["attention_mask"].shape[1] - new, wanted.shape[1]))
        return step(feeds, wanted, keep_cache)

    runner.step = noted
    scorer, answers = Scorer(runner, batch_tokens), {}
    scorer.run([request(context, continuation, 4096) for context, continuation in pairs], answers.__setitem__)
    assert len(answers) == len(pairs) and all(isinstance(answer, dict) for answer in answers.values())
    return scorer, passes


def test_batches_keep_within_what_a_runner_takes() -> None:
    rng = np.random.default_rng(0)
    pairs = [
        (rng.integers(0, 9, rng.integers(1, 90)).tolist(), rng.integers(0, 9, rng.integers(1, 20)).tolist())
        for _ in range(60)
    ]
    limits = Limits(batch=4, new=24, past=200, wanted=7)
    _, passes = watched(limits, 4096, pairs)
    for batch, new, past, wanted in passes:
        assert batch <= 4 and new <= 24 and past <= 200 and wanted <= 7
    _, passes = watched(Limits(), 64, pairs)
    assert all(batch * new <= 64 for batch, new, _, _ in passes) and any(batch > 1 for batch, *_ in passes)


def test_padding_stays_under_a_tenth() -> None:
    rng = np.random.default_rng(1)
    pairs = []
    for _ in range(80):
        context = rng.integers(0, 90, rng.integers(20, 60)).tolist()
        pairs += [(context, rng.integers(0, 90, rng.integers(3, 14)).tolist()) for _ in range(4)]
    scorer, _ = watched(Limits(), 2048, pairs)
    assert scorer.work.padding < 0.1 * scorer.work.tokens
    assert scorer.work.tokens < 0.6 * scorer.work.asked
