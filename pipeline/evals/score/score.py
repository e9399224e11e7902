"""Stage: a graph or an engine → its benchmark scores, through lm-evaluation-harness.

Questions are asked of each artefact once: answers are kept as they come, a run that was killed goes on, and `together`
lets a merged graph answer for all its variants before each is evaluated from its own answers.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline import store
from pipeline.evals import machine, passed
from pipeline.evals.score import benchmarks, results, tasks
from pipeline.evals.score.batches import ScoringError
from pipeline.evals.score.evaluation import Evaluation
from pipeline.evals.score.harness import PipelineLM
from pipeline.evals.score.results import Score
from pipeline.types import UserError

__all__ = ["Score", "ScoringError", "score"]


def score(
    paths: list[Path],
    names: list[str],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    data: Path | None = None,
    protocol: str = "lm-eval",
    merged: Path | None = None,
    batch_tokens: int = 2048,
    memory_mb: int = 1024,
    threads: int = 0,
    fresh: bool = False,
    log_samples: bool = False,
    unchecked: bool = False,
) -> list[Score]:
    """Scores artefacts on benchmarks and writes evals/results/<model>/<artefact>.score.<benchmark>.json for each pair.

    Args:
        names: of benchmarks (`benchmarks.find`).
        limit: documents a task at most.
        num_fewshot: examples before each question, where that is to differ from the benchmark's own number.
        data: folder of local rows; None takes them from the hub.
        protocol: 'lm-eval' or 'v1'.
        merged: a graph merged from these very paths: it answers first, for all of them.
        batch_tokens: tokens of a forward pass.
        memory_mb: of the prefix cache.
        fresh: forget the answers that earlier runs kept.
        log_samples: write every question's answers beside the result.

    Raises:
        UserError: an artefact, a benchmark or its data cannot be used; nothing has run then.
        ScoringError: documents failed; everything else has been done and written.
    """
    _refuse(limit, batch_tokens, memory_mb, data)
    for path in paths:
        passed.variants(path, unchecked)
    options: dict[str, Any] = {
        "protocol": protocol,
        "batch_tokens": batch_tokens,
        "memory_mb": memory_mb,
        "threads": threads,
    }
    options["unchecked"] = unchecked
    asked = [Evaluation(benchmarks.find(name, num_fewshot), data, protocol, limit) for name in names]
    for one in asked:  # every prompt is built before the first model runs: a bad row costs no hour
        one.instances()
    failures: list[str] = []
    scores: list[Score] = []
    with _bar() as bar:
        if merged is not None:
            with closing(PipelineLM(merged, fresh=fresh, **options)) as model:
                _answer_together(model, asked, bar, failures)
        for path in paths:
            with closing(PipelineLM(path, fresh=fresh and merged is None, **options)) as model:
                scores += [made for one in asked if (made := _one(model, one, bar, log_samples, failures))]
    if failures:
        raise ScoringError("; ".join(failures))
    return scores


def _refuse(limit: int | None, batch_tokens: int, memory_mb: int, data: Path | None) -> None:
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit} is not at least 1")
    if batch_tokens < 1 or memory_mb < 0:
        raise UserError("--batch-tokens must be at least 1, and --cache-mb not negative")
    if data is not None and not data.is_dir():
        raise UserError(f"--data {data} is no folder")


# ---- one artefact, one benchmark ------------------------------------------------------------------------------------


def _one(
    model: PipelineLM, asked: Evaluation, bar: Progress, log_samples: bool, failures: list[str]
) -> Score | None:
    name = store.read_sidecar(model.path, quick=True).get("variant", model.path.stem)
    before, started = asdict(model.work), time.time()
    try:
        with _follow(model, bar, f"{asked.benchmark.name} {name}"):
            found = asked.evaluate(model)
    except ScoringError as error:
        failures.append(f"{model.path}, {asked.benchmark.name}: {error}")
        return None
    samples = found.pop("samples", {})
    metric, value, stderr, n = asked.value(found)
    complete, shots = asked.complete(), asked.shots()
    digest = next(iter(model.variants.values()))[1]
    made = Score(
        variant=name, artefact=str(model.path), sha256=digest, benchmark=asked.benchmark.name, title=asked.benchmark.title,
        metric=metric, value=value, stderr=stderr, n=n, limit=asked.limit, num_fewshot=asked.benchmark.num_fewshot,
        protocol="v1-like" if asked.protocol == "v1" and (shots or complete is False or asked.limit) else asked.protocol,
        complete=complete, shots=shots, checked=store.check_passed(model.path, digest),
        work={key: count - before[key] for key, count in asdict(model.work).items()},
    )  # fmt: skip
    found["config"] = {
        "model": "pipeline",
        **model.get_model_info(),
        "limit": asked.limit,
        "bootstrap_iters": 1000,
    }
    found["config"]["device"] = machine.device(model.path)
    found["config"] |= {"fewshot_seed": tasks.SEED, "source": asked.benchmark.source}
    found |= {
        "date": started,
        "lm_eval_version": importlib.metadata.version("lm_eval"),
        "data": asked.provenance(),
    }
    if asked.protocol == "v1":
        found["config"]["protocol_note"] = V1_NOTE
    results.write(made, found, samples if log_samples else None)
    return made


V1_NOTE = (
    "as the Open LLM Leaderboard v1: no BOS, MMLU averaged over subjects; few-shot examples are drawn by today's lm-eval (seed "
    "1234), not by v1's own stream (seed 42), so that single prompts differ"
)


def _answer_together(model: PipelineLM, asked: list[Evaluation], bar: Progress, failures: list[str]) -> None:
    """Lets a merged graph answer what needs no generation; its answers go to each variant's own journal."""
    for one in asked:
        for kind, questions in one.instances().items():
            if kind == "generate_until":
                continue  # every variant writes its own text: nothing is shared after the first token
            try:
                with _follow(model, bar, f"{one.benchmark.name}, {len(model.variants)} variants"):
                    (model.loglikelihood if kind == "loglikelihood" else model.rolling)(questions)
            except ScoringError as error:
                failures.append(f"{model.path}, {one.benchmark.name}: {error}")


# ---- how far it is --------------------------------------------------------------------------------------------------


class Documents:
    """Counts documents whose questions are all answered, on a progress bar."""

    def __init__(self, bar: Progress, words: str) -> None:
        self.bar, self.words = bar, words
        self.left: Counter[tuple[str | None, int | None]] = Counter()
        self.task: Any = None
        self.started = time.monotonic()
        self.count = 0

    def begin(self, requests: list[Instance]) -> None:
        self.left.update((request.task_name, request.doc_id) for request in requests)
        if self.task is None:
            self.task = self.bar.add_task(self.words, total=0, rate="")
        self.bar.update(self.task, total=len(self.left))

    def done(self, request: Instance) -> None:
        key = (request.task_name, request.doc_id)
        self.left[key] -= 1
        if not self.left[key]:
            self.count += 1
            rate = self.count / max(1e-6, time.monotonic() - self.started)
            self.bar.update(self.task, advance=1, rate=f"{rate:.1f} documents/s")


@contextmanager
def _follow(model: PipelineLM, bar: Progress, words: str) -> Iterator[None]:
    documents = Documents(bar, words)
    model.progress = documents
    try:
        yield
    finally:
        model.progress = None
        if documents.task is not None:
            bar.remove_task(documents.task)


def _bar() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
