from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.evals.score.loglikelihoods import LogLikelihoods, ScoringError
from pipeline.evals.score.prefixes import Node, Request
from pipeline.runtime.generation.sampling import NOT_FINITE


def request(tokens: list[int], targets: list[int]) -> Request:
    return Request(np.array(tokens, np.int32), np.array(targets, np.int32))


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 5, (2, 11)).astype(np.float32)


def test_sums_are_torchs_log_softmax(logits: np.ndarray) -> None:
    """Two targets on one node, for two requests and two heads."""
    answers = {}
    best = logits.argmax(1).tolist()
    requests = [request([1, 2, 3], best), request([1, 2, 3], [4, 5])]
    sums = LogLikelihoods(requests, ["", "other"], answers.__setitem__)
    node = Node(requests[0].tokens, 0, None, requests=[0, 1])
    node.wanted = {2: [(0, 1), (1, 1)], 1: [(0, 0), (1, 0)]}
    sums.read(node, {"": logits, "other": -logits})
    expected = torch.log_softmax(torch.tensor(logits, dtype=torch.float64), 1).numpy()
    assert answers[0][""] == (pytest.approx(expected[0, best[0]] + expected[1, best[1]]), True)
    assert answers[1][""] == (pytest.approx(expected[0, 4] + expected[1, 5]), False)
    turned = torch.log_softmax(torch.tensor(-logits, dtype=torch.float64), 1).numpy()
    assert answers[1]["other"][0] == pytest.approx(turned[0, 4] + turned[1, 5])


def test_an_answer_comes_once_all_its_targets_are_read(logits: np.ndarray) -> None:
    answers = {}
    one = request([1, 2, 3], [4, 5])
    sums = LogLikelihoods([one], [""], answers.__setitem__)
    upper, lower = Node(one.tokens[:2], 0, None), Node(one.tokens, 2, None)
    upper.wanted, lower.wanted = {1: [(0, 0)]}, {2: [(0, 1)]}
    sums.read(upper, {"": logits[:1]})
    assert not answers
    sums.read(lower, {"": logits[1:]})
    assert list(answers) == [0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [3, 7])
def test_one_logit_that_is_no_number_spoils_its_request_alone(
    value: float, place: int, logits: np.ndarray
) -> None:
    """At the target, and beside it: one of -inf there would leave the sum finite."""
    answers = {}
    requests = [request([1, 2], [3]), request([4, 5], [3])]
    sums = LogLikelihoods(requests, ["", "other"], answers.__setitem__)
    spoilt = logits[:1].copy()
    spoilt[0, place] = value
    for number, rows in ((0, spoilt), (1, logits[1:])):
        node = Node(requests[number].tokens, 0, None, requests=[number])
        node.wanted = {1: [(number, 0)]}
        sums.read(node, {"": logits[:1], "other": rows})
    assert str(answers[0]) == NOT_FINITE
    assert answers[1]["other"][0] == pytest.approx(
        float(torch.log_softmax(torch.tensor(logits[1], dtype=torch.float64), 0)[3])
    )


def test_logits_that_are_not_finite_are_an_error_and_a_failure_is_reported_once(logits: np.ndarray) -> None:
    answers: list[tuple[int, object]] = []
    requests = [request([1, 2], [3]), request([1, 2], [4])]
    sums = LogLikelihoods(requests, [""], lambda *pair: answers.append(pair))
    node = Node(requests[0].tokens, 0, None, requests=[0, 1])
    node.wanted = {1: [(0, 0)]}
    sums.read(node, {"": np.full((1, 11), np.nan, np.float32)})
    for _ in range(2):
        sums.fail(node, ScoringError("out of memory"))
    assert [(number, str(error)) for number, error in answers] == [
        (0, NOT_FINITE),
        (1, "out of memory"),
    ]
