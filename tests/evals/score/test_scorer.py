from __future__ import annotations

import numpy as np
import pytest

from pipeline.evals.score.loglikelihoods import ScoringError
from pipeline.evals.score.prefixes import request
from pipeline.evals.score.scorer import Scorer
from pipeline.runtime.runner import Limits, TensorInfo
from tests.bench_score import Blank

Pairs = list[tuple[list[int], list[int]]]


class Contract(Blank):
    """A blank runner with the inputs of the graph contract."""

    def __init__(self, limits: Limits) -> None:
        names = ("input_ids", "attention_mask", "position_ids", "logits_positions")
        self.path, self.inputs = None, {name: TensorInfo(np.dtype(np.int64), ("B", name)) for name in names}
        super().__init__(self)
        self.limits = limits

    @property
    def cache_bytes(self) -> int:
        return 1000


def watched(limits: Limits, batch_tokens: int, pairs: Pairs) -> tuple[Scorer, list[tuple[int, ...]]]:
    """(the scorer, (B, S, P, K) of every pass)."""
    runner = Contract(limits)
    passes: list[tuple[int, ...]] = []
    step = runner.step

    def noted(one, keep_cache=True):
        batch, new = one.feeds["input_ids"].shape
        assert one.feeds["attention_mask"].shape[1] == one.tokens and one.cache.rows == batch
        passes.append((batch, new, one.cache.tokens, one.wanted.shape[1]))
        return step(one, keep_cache)

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
    _, passes = watched(Limits(batch=4, new=24, past=200, wanted=7), 4096, pairs)
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


def test_a_prefix_of_an_earlier_run_is_not_computed_again() -> None:
    runner, answers = Contract(Limits()), {}
    scorer, shots = Scorer(runner), list(range(200))
    for run in range(2):
        requests = [request([*shots, 300 + run, choice], [1], 4096) for choice in (7, 8, 9)]
        requests += [request([*shots, 400 + run], [1], 4096)]
        scorer.run(requests, lambda number, answer, run=run: answers.__setitem__((run, number), answer))
    assert len(answers) == 8 and scorer.work.tokens < 230 < scorer.work.asked
    whole = Scorer(runner, reuse=False)
    whole.run([request([*shots, choice], [1], 4096) for choice in (7, 8, 9)], lambda *_: None)
    assert whole.work.tokens == whole.work.asked == 3 * 201


def test_a_row_that_fails_loses_its_own_requests_only() -> None:
    runner, answers = Contract(Limits()), {}
    step = runner.step

    def fragile(one, keep_cache=True):
        if 7 in one.feeds["input_ids"]:
            raise RuntimeError("out of memory\nand a trace")
        return step(one, keep_cache)

    runner.step = fragile
    contexts = [[k, k, k] for k in range(12)]
    Scorer(runner).run([request(context, [1], 4096) for context in contexts], answers.__setitem__)
    failures = {number: answer for number, answer in answers.items() if isinstance(answer, ScoringError)}
    assert len(answers) == 12 and {n: str(error) for n, error in failures.items()} == {7: "out of memory"}


def test_unknown_tokens_fail_their_own_requests_only() -> None:
    """In the context, as the target, negative; beside a request with the same beginning."""
    runner, answers = Contract(Limits()), {}
    size = runner.width
    shared = list(range(40))
    pairs = [
        ([*shared, 5], [1]),
        ([*shared, size], [1]),
        ([*shared, 5], [size]),
        ([-1], [1]),
        ([3], [-2]),
        ([3], [2]),
    ]
    Scorer(runner).run([request(*pair, 4096) for pair in pairs], answers.__setitem__)
    failures = {number: str(answer) for number, answer in answers.items() if isinstance(answer, ScoringError)}
    assert set(answers) == set(range(6)) and list(failures) == [1, 2, 3, 4]
    assert f"holds token {size}" in failures[1] and "holds token -1" in failures[3]
    runner.embedding_rows = size + 1  # a token that is read and never written
    Scorer(runner).run([request(*pair, 4096) for pair in pairs], answers.__setitem__)
    assert isinstance(answers[1], dict) and isinstance(answers[2], ScoringError)


def test_the_answers_are_those_of_logits_that_are_known() -> None:
    """A runner that prefers token n + 1 after token n: its log-likelihoods can be computed by hand."""
    runner, answers = Contract(Limits()), {}

    known = runner.step

    def step(one, keep_cache=True):
        ids = np.take_along_axis(one.feeds["input_ids"], one.wanted, axis=1)
        logits = np.zeros((*one.wanted.shape, 10), np.float32)
        np.put_along_axis(logits, (ids[:, :, None] + 1) % 10, 2.0, axis=2)
        return {"": logits}, known(one, keep_cache)[1]

    runner.step, runner.outputs = step, {"logits": TensorInfo(np.dtype(np.float32), ("B", "K", 10))}
    pairs = [([1, 2], [3, 4]), ([1, 2], [3, 9]), ([5], [0])]
    Scorer(runner, 16).run([request(*pair, 64) for pair in pairs], answers.__setitem__)
    norm = np.log(np.exp(2.0) + 9)
    assert answers[0][""] == (pytest.approx(2 * (2 - norm)), True)
    assert answers[1][""] == (pytest.approx(2 - norm - norm), False)
    assert answers[2][""] == (pytest.approx(-norm), False)


@pytest.mark.parametrize(("words", "rows"), [(96, 1024), (49152, 1024), (262144, 192)])
def test_a_wide_vocabulary_gets_fewer_rows_of_logits(words: int, rows: int) -> None:
    """A pass gives 200 MB of logits at most, also with Gemma's 262,144 words."""

    class Wide(Contract):
        width = words  # type: ignore[assignment]

    assert Scorer(Wide(Limits())).limits.logit_rows == rows
