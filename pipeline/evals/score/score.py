"""Stage: a graph or an engine → its benchmark scores, through lm-evaluation-harness.

Each artefact is asked each question once: answers are kept as they come, and a run that was killed resumes. A
merged graph answers for all its variants in one pass; then each variant is evaluated from its own answers.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from rich.progress import Progress

from pipeline import store
from pipeline.evals import machine, passed
from pipeline.evals.score import benchmarks, results, tasks
from pipeline.evals.score.cached_task import SEED
from pipeline.evals.score.evaluation import Evaluation
from pipeline.evals.score.harness import PipelineLM
from pipeline.evals.score.loglikelihoods import ScoringError
from pipeline.evals.score.progress import document_bar, follow
from pipeline.evals.score.settings import ScoreSettings
from pipeline.store.records import Score

__all__ = ["DEFAULTS", "ScoreSettings", "ScoringError", "score"]

DEFAULTS = ScoreSettings()

V1_NOTE = (
    "as the Open LLM Leaderboard v1: no BOS, MMLU averaged over subjects; few-shot examples are drawn by "
    "today's lm-eval (seed 1234), not by v1's own stream (seed 42), so that single prompts differ"
)


def score(
    paths: Sequence[Path],
    names: Sequence[str],
    settings: ScoreSettings = DEFAULTS,
    merged: Path | None = None,
) -> list[Score]:
    """Scores each artefact on each benchmark, and writes evals/results/<model>/….score.<benchmark>.json.

    Args:
        paths: of graphs and engines, of one variant each.
        names: of benchmarks (`benchmarks.find`).
        settings: rows, limit, protocol, and how the model runs.
        merged: a graph merged from these very paths: it answers first, for all of them.

    Returns:
        The scores, whose artefacts are paths from here.

    Raises:
        UserError: an artefact, a benchmark or its rows cannot be used; nothing has run then.
        ScoringError: documents failed; everything else has been done and written.
    """
    settings.validate()
    for path in paths:
        passed.variants(path, settings.unchecked, settings.provider)
        store.variant(path, quick=True)  # a merged graph has no score of its own
    projects = dict.fromkeys(map(store.Project.of, paths))
    evaluations = {project: _evaluations(names, settings, project) for project in projects}
    failures, scores = list[str](), list[Score]()
    with document_bar() as bar:
        if merged is not None:
            with closing(PipelineLM(merged, settings)) as model:
                failures += _answer_together(model, evaluations[model.project], bar)
            settings = replace(settings, fresh=False)  # each variant is evaluated from those answers
        for path in paths:
            with closing(PipelineLM(path, settings)) as model:
                scores += _scores(model, evaluations[model.project], settings, bar, failures)
    if failures:
        raise ScoringError("; ".join(failures))
    return scores


def _scores(
    model: PipelineLM,
    evaluations: Sequence[Evaluation],
    settings: ScoreSettings,
    bar: Progress,
    failures: list[str],
) -> Iterator[Score]:
    """One artefact on every benchmark; what went wrong is added to `failures`."""
    for evaluation in evaluations:
        try:
            yield _evaluate(model, evaluation, bar, settings.log_samples)
        except ScoringError as error:
            failures.append(f"{model.path}, {evaluation.benchmark.name}: {error}")


def _evaluations(names: Sequence[str], settings: ScoreSettings, project: store.Project) -> list[Evaluation]:
    """The benchmarks, every prompt built: a bad row is reported before the first model runs."""
    evaluations = []
    for name in benchmarks.with_members(names, project):
        benchmark = benchmarks.find(name, settings.num_fewshot, project)
        evaluation = Evaluation(benchmark, settings.data, settings.protocol, settings.limit, project)
        evaluation.instances()
        evaluations.append(evaluation)
    return evaluations


def _evaluate(model: PipelineLM, evaluation: Evaluation, bar: Progress, log_samples: bool) -> Score:
    """One artefact on one benchmark: computed and written."""
    variant = store.variant(model.path, quick=True).name
    start = time.time()
    model.asked.clear()
    with follow(model, bar, f"{evaluation.benchmark.name} {variant}"):
        harness_results = evaluation.evaluate(model)
    work = model.work_of_asked().counts()
    samples = harness_results.pop("samples", {})
    value = _score(model, evaluation, harness_results, work)
    whole = {**harness_results, **_conditions(model, evaluation), "date": start}
    return results.write(value, whole, evaluation.sources, samples if log_samples else None)


def _score(
    model: PipelineLM, evaluation: Evaluation, harness_results: tasks.HarnessResults, work: dict[str, int]
) -> Score:
    benchmark, value = evaluation.benchmark, evaluation.value(harness_results)
    complete, shots, limit = evaluation.complete(), evaluation.shots, evaluation.limit
    is_like_v1 = evaluation.protocol == "v1" and bool(shots or complete is False or limit)
    (_, digest), *_ = model.variants.values()
    return Score(
        variant=store.variant(model.path, quick=True).name,
        artefact=str(model.path),
        sha256=digest,
        weights=store.sidecar(model.path).weights,
        contents=store.contents(model.path),
        benchmark=benchmark.name,
        title=benchmark.title,
        metric=value.metric,
        value=value.value,
        stderr=value.stderr,
        chance=benchmark.chance,
        n=value.documents,
        limit=limit,
        num_fewshot=benchmark.num_fewshot,
        protocol="v1-like" if is_like_v1 else evaluation.protocol,
        complete=complete,
        shots=shots,
        checked=store.check_passed(model.path, digest, model.settings.provider),
        work=work,
        provider=store.provider_of(model.path, model.settings.provider),
    )


def _conditions(model: PipelineLM, evaluation: Evaluation) -> tasks.HarnessResults:
    """What lm-eval's own command would add to its results."""
    config = {
        "model": "pipeline",
        **model.get_model_info(),
        "limit": evaluation.limit,
        "bootstrap_iters": tasks.BOOTSTRAP,
        "device": machine.device(model.path, model.settings.provider),
        "fewshot_seed": SEED,
        "source": evaluation.benchmark.source,
    }
    if evaluation.protocol == "v1":
        config["protocol_note"] = V1_NOTE
    return {"config": config, "lm_eval_version": importlib.metadata.version("lm_eval")}


def _answer_together(model: PipelineLM, evaluations: list[Evaluation], bar: Progress) -> list[str]:
    """Lets a merged graph answer for its variants → what failed. Generated text is left to each variant."""
    failures = []
    for evaluation in evaluations:
        for kind, questions in evaluation.instances().items():
            if kind == "generate_until":
                continue  # the variants' texts differ, and nothing is shared behind the first token
            ask = model.loglikelihood if kind == "loglikelihood" else model.rolling
            try:
                with follow(model, bar, f"{evaluation.benchmark.name}, {len(model.variants)} variants"):
                    ask(questions)
            except ScoringError as error:
                failures.append(f"{model.path}, {evaluation.benchmark.name}: {error}")
    return failures
