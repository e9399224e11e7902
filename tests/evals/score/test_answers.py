"""Tasks of lm-eval's own: what it scores in silence is refused, as it is of local rows."""

from __future__ import annotations

from typing import Any

import datasets
import pytest
from lm_eval.api.task import ConfigurableTask

from pipeline.evals.score import answers, tasks
from pipeline.evals.score.benchmarks import Benchmark
from pipeline.types import UserError


def task(*rows: dict[str, Any], **config: Any) -> ConfigurableTask:
    """A task as lm-eval makes it of a YAML; the rows stand for the hub's."""
    data = datasets.DatasetDict({"test": datasets.Dataset.from_list(list(rows))})
    own = {"task": "own", "output_type": "multiple_choice", "test_split": "test", "doc_to_text": "{{q}}"}
    own |= {"doc_to_choice": ["no", "yes"], "doc_to_target": "gold", "num_fewshot": 0}
    return ConfigurableTask(config={**own, "custom_dataset": lambda **_: data, **config})


def loaded(of: ConfigurableTask) -> tasks.LoadedTasks:
    return tasks.LoadedTasks(Benchmark("own", "", "", "", (), None), {"tasks": {"own": of}}, {}, None)


@pytest.mark.parametrize("gold", [2, -1])
def test_an_answer_that_is_no_choice_is_refused_of_a_task_of_lm_evals(gold: int) -> None:
    of = task({"q": "a", "gold": 1}, {"q": "b", "gold": gold})
    with pytest.raises(UserError, match=rf"^row 2 of own: its answer is {gold}, none of its 2 choices$"):
        loaded(of).instances(None)
    assert len(loaded(of).instances(1)["loglikelihood"]) == 2


def test_a_row_that_makes_no_prompt_is_named_of_a_task_of_lm_evals() -> None:
    of = task({"q": "a", "gold": {"n": 1}}, {"q": "b", "gold": None}, doc_to_target="{{gold.n + 0}}")
    with pytest.raises(UserError, match="row 2 of own makes no prompt: "):
        loaded(of).instances(None)


def test_an_answer_in_words_must_be_one_of_the_choices() -> None:
    of = task({"q": "a", "gold": "yes"}, {"q": "b", "gold": "maybe"})
    with pytest.raises(UserError, match=r"row 2 of own: its answer is 'maybe'"):
        loaded(of).instances(None)


def test_one_of_several_answers_that_is_no_choice_is_refused() -> None:
    of = task({"q": "a", "gold": [0, 1]}, {"q": "b", "gold": [1, -1]})
    with pytest.raises(UserError, match=r"row 2 of own: its answer is \[1, -1\]"):
        loaded(of).instances(None)


def test_the_context_that_is_right_must_be_one_of_them() -> None:
    """As winogrande: the choices are contexts, and the text of a document is the index of the right one."""
    config = {"doc_to_text": "gold", "doc_to_target": "q", "doc_to_choice": ["no", "yes"]}
    good, bad = {"q": "a", "gold": 1}, {"q": "b", "gold": -1}
    assert len(loaded(task(good, good, **config)).instances(None)["loglikelihood"]) == 4
    with pytest.raises(UserError, match="row 2 of own: its answer is -1"):
        loaded(task(good, bad, **config)).instances(None)


def test_a_written_answer_that_an_index_names() -> None:
    """lm-eval compares what the model writes with choices[index]."""
    config = {"output_type": "generate_until", "metric_list": [{"metric": "exact_match"}]}
    with pytest.raises(UserError, match="row 2 of own: its answer is -1"):
        loaded(task({"q": "a", "gold": 1}, {"q": "b", "gold": -1}, **config)).instances(None)


def test_a_task_with_a_judge_of_its_own_may_use_targets_as_it_likes() -> None:
    of = task({"q": "a", "gold": 1}, {"q": "b", "gold": 7}, process_results=lambda *_: {"acc": 1.0})
    answers.refuse_unanswerable(of, dict(of.doc_iterator()))
    assert len(loaded(of).instances(None)["loglikelihood"]) == 4
