from __future__ import annotations

from typing import Any

import pytest

from pipeline.evals.score import questions
from pipeline.evals.score.journal import Journal
from pipeline.evals.score.loglikelihoods import ScoringError
from pipeline.evals.score.questions import Questions, text_groups, windows
from pipeline.evals.score.work import Work
from tests.scoring import instances


class Listener:
    def __init__(self) -> None:
        self.total, self.finished = 0, list[int]()

    def begin(self, requests: list[Any]) -> None:
        self.total += len(requests)

    def done(self, request: Any) -> None:
        self.finished.append(request.doc_id)


def ask(
    journal: Journal, requests: list[Any], outcomes: dict[str, Any], end: BaseException | None = None
) -> None:
    """Asks questions with these keys, finishes each, and raises `end` inside the block."""
    with Questions({"": journal}, list(outcomes), requests, None) as block:
        for key, outcome in outcomes.items():
            block.finish(key, outcome)
        if end is not None:
            raise end


def test_only_what_is_missing_is_asked_and_answers_keep_the_order_of_requests() -> None:
    journal, listener = Journal(None), Listener()
    journal.add({"b": [-2.0, True]})
    requests = instances("loglikelihood", [("x", "a"), ("x", "b"), ("x", "a")])
    with Questions({"": journal}, ["a", "b", "a"], requests, listener) as block:
        assert block.missing == {"a"} and listener.finished == [1]
        block.finish("a", {"": (-1.0, False)})
        assert block.missing == set()
    assert block.answers() == [[-1.0, False], [-2.0, True], [-1.0, False]]
    assert listener.total == 3 and sorted(listener.finished) == [0, 1, 2]  # equal questions are done together


def test_a_question_is_missing_unless_every_head_has_its_answer() -> None:
    journals = {"base": Journal(None), "attn2": Journal(None)}
    journals["base"].add({"a": [-1.0, True]})
    requests = instances("loglikelihood", [("x", "a")])
    with Questions(journals, ["a"], requests, None) as block:
        assert block.missing == {"a"}
        block.finish("a", {"base": (-1.0, True), "attn2": (-3.0, False)})
    assert journals["attn2"].answers == {"a": [-3.0, False]} and block.answers() == [[-1.0, True]]


def test_failures_are_named_at_the_end_and_the_others_kept() -> None:
    journal = Journal(None)
    requests = instances("loglikelihood", [("x", str(k)) for k in range(8)])
    message = r"^7 documents could not be scored: corner 1: reason 1; .*corner 5: reason 5; …$"
    outcomes: dict[str, Any] = {str(k): ScoringError(f"reason {k}") for k in range(1, 8)}
    with pytest.raises(ScoringError, match=message):
        ask(journal, requests, {"0": {"": (-1.0, True)}, **outcomes})
    assert journal.answers == {"0": [-1.0, True]}


def test_documents_that_fail_for_one_reason_are_named_together() -> None:
    requests = instances("loglikelihood", [("x", str(k)) for k in range(8)])
    outcomes: dict[str, Any] = {str(k): ScoringError("of 3" if k == 3 else "same") for k in range(8)}
    message = r"^8 documents could not be scored: corner 0, .* 1, .* 2, corner 4: same; corner 3: of 3; …$"
    with pytest.raises(ScoringError, match=message):
        ask(Journal(None), requests, outcomes)


def test_an_exception_in_the_block_is_not_hidden_and_answers_are_kept() -> None:
    journal = Journal(None)
    requests = instances("loglikelihood", [("x", "a"), ("x", "b")])
    outcomes: dict[str, Any] = {"a": {"": (-1.0, True)}, "b": ScoringError("reason")}
    with pytest.raises(KeyboardInterrupt):
        ask(journal, requests, outcomes, KeyboardInterrupt())
    assert list(journal.answers) == ["a"]


def test_answers_are_written_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(questions.time, "monotonic", lambda: now[0])
    journal = Journal(None)
    requests = instances("loglikelihood", [("x", k) for k in "abc"])
    with Questions({"": journal}, list("abc"), requests, None) as block:
        block.finish("a", {"": (-1.0, True)})
        assert not journal.answers
        now[0] = 1.5
        block.finish("b", {"": (-1.0, True)})
        assert list(journal.answers) == ["a", "b"]
        block.finish("c", {"": (-1.0, True)})
        assert "c" not in journal.answers
    assert "c" in journal.answers


def test_the_work_between_two_writes_is_that_of_their_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    now, spent = [0.0], Work()
    monkeypatch.setattr(questions.time, "monotonic", lambda: now[0])
    journals = {"base": Journal(None), "attn2": Journal(None)}
    requests = instances("loglikelihood", [("x", k) for k in "abc"])
    spent.tokens = 1000  # of an earlier benchmark
    with Questions(journals, list("abc"), requests, None, lambda: spent) as block:
        for key, tokens, time in (("a", 1000, 0.5), ("b", 1020, 1.5), ("c", 1120, 4.0)):
            spent.tokens, now[0] = tokens, time
            block.finish(key, dict.fromkeys(journals, (-1.0, True)))
    for journal in journals.values():  # each variant of a merged graph has its part
        shares = [(journal.work[key].tokens, journal.work[key].seconds) for key in "abc"]
        assert shares == [(5, 0.375), (5, 0.375), (50, 1.25)]


def test_windows_keep_the_continuations_of_a_context_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "WINDOW", 20)
    pairs = [("a" * 15, "x" * 4), ("a" * 15, "y" * 4), ("a" * 15, "z"), ("b" * 30, "x"), ("c", "x")]
    assert list(windows(pairs)) == [pairs[:3], pairs[3:4], pairs[4:]]
    assert list(windows([])) == []


def test_groups_are_of_about_the_same_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "GROUP", 10)
    sizes = {"a": 6, "b": 6, "c": 30, "d": 1, "e": 1}
    assert list(text_groups(list(sizes), sizes.__getitem__)) == [["a", "b"], ["c"], ["d", "e"]]
