from __future__ import annotations

from types import SimpleNamespace

from pipeline.evals.score.progress import document_bar, follow
from tests.scoring import instances


def test_a_document_counts_once_all_its_questions_are_answered() -> None:
    requests = instances("loglikelihood", [("x", "a"), ("x", "b")])
    requests += instances("loglikelihood", [("x", "c")])  # the first document's third question
    bar, model = document_bar(), SimpleNamespace(progress=None)
    with follow(model, bar, "arc base"):
        model.progress.begin(requests)
        (task,) = bar.tasks
        assert (task.description, task.total, task.completed) == ("arc base", 2, 0)
        model.progress.done(requests[0])
        assert task.completed == 0
        model.progress.done(requests[1])
        assert task.completed == 1 and "documents/s" in task.fields["rate"]
        model.progress.done(requests[2])
        assert task.completed == 2
    assert not bar.tasks and model.progress is None
