"""Scores on disk: a JSON for each artefact and benchmark, lm-eval's form with the score under `pipeline`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.evals.score.benchmarks import PAPER
from pipeline.store import records
from pipeline.store.records import DataSource, Score, ScoreRecord
from pipeline.types import Provider

Sample = Mapping[str, Any]
"""One document with the model's answers, as lm-eval gives it."""


def path_of(score: Score) -> Path:
    """Where the result of a score is kept."""
    return store.result_of(Path(score.artefact), f"score.{score.key}", score.provider or "cpu")


def write(
    score: Score,
    harness_results: Mapping[str, Any],
    sources: Mapping[str, Mapping[str, DataSource]],
    samples: Mapping[str, list[Sample]] | None = None,
) -> Score:
    """Writes a result, and the samples beside it where they are given.

    Args:
        score: whose artefact is a path from here.
        harness_results: what lm-eval gives, without its samples.
        sources: task → split → where its rows came from.
        samples: task → documents.

    Returns:
        The score, with the name of the samples' file.
    """
    from lm_eval.utils import handle_non_serializable

    path = path_of(score)
    if samples is not None:
        log = path.with_suffix(".samples.jsonl")
        with store.atomic(log) as temporary, temporary.open("w", encoding="utf-8") as out:
            for task, documents in samples.items():
                for document in documents:
                    row = _sample(task, document)
                    out.write(json.dumps(row, default=handle_non_serializable, ensure_ascii=False) + "\n")
        score = score.replaced(samples=log.name)
    artefact = store.relative(Path(score.artefact), path)
    data = {
        task: {split: _placed(source, path).plain() for split, source in splits.items()}
        for task, splits in sources.items()
    }
    config = {**harness_results["config"], "artefact": artefact}
    whole = {**harness_results, "config": config, "data": data}
    plain = json.loads(json.dumps(whole, default=handle_non_serializable))
    store.write_json(path, {**plain, "pipeline": score.replaced(artefact=artefact).plain()})
    return score


def _placed(source: DataSource, result: Path) -> DataSource:
    """The source with its file's path as the result has it; a dataset of the hub stays as it is."""
    file = Path(source.file)
    return source.replaced(file=store.relative(file, result)) if file.is_file() else source


def _sample(task: str, document: Sample) -> dict[str, Any]:
    """lm-eval's sample behind what people look for: id, the choices' log-likelihoods, the pick."""
    answers = document["filtered_resps"]
    number = document["doc"].get("id", document["doc"].get("idx", document["doc_id"]))
    front: dict[str, Any] = {"task": task, "id": number}
    if answers and all(
        isinstance(answer, list | tuple) and len(answer) == 2 and isinstance(answer[0], float)
        for answer in answers
    ):
        nats = [answer[0] for answer in answers]
        lengths = [max(1, len(arguments[1].lstrip(" "))) for arguments in document["arguments"]]
        normed = [value / length for value, length in zip(nats, lengths, strict=True)]
        front |= {
            "loglikelihoods": nats,
            "pick": nats.index(max(nats)),
            "pick_norm": normed.index(max(normed)),
        }
    return {**front, **document}


def read(path: Path) -> Score:
    """The score in a result file; its artefact is a path from here.

    Raises:
        UserError: the file is no result of `score`.
    """
    score = records.read(ScoreRecord, path).pipeline
    return score.replaced(artefact=str(store.resolved(score.artefact, path)))


def scores_of(artefact: Path, provider: Provider = "cpu") -> list[Score]:
    """The fullest score of each benchmark, with its own shots, of just this artefact and its weights now.

    Args:
        artefact: a graph or an engine.
        provider: of ONNX Runtime, on which a graph was scored.
    """
    pattern = store.result_of(artefact, "score.*")
    wanted = {
        "sha256": store.sidecar(artefact, quick=True).sha256,
        "contents": store.contents(artefact),
        "provider": store.provider_of(artefact, provider),
    }
    fullest: dict[str, Score] = {}
    for file in sorted(pattern.parent.iterdir() if pattern.parent.is_dir() else ()):
        prefix, _, suffix = pattern.name.partition("*")
        if not (file.name.startswith(prefix) and file.name.endswith(suffix)):
            continue
        score = read(file).replaced(artefact=str(artefact))
        if score.matches(wanted) and score.num_fewshot is None:
            best = fullest.get(score.benchmark)
            if best is None or _documents(score) > _documents(best):
                fullest[score.benchmark] = score
    return sorted(fullest.values(), key=lambda score: score.benchmark)


def _documents(score: Score) -> tuple[bool, int]:
    return score.limit is None, score.n


@dataclass(frozen=True, slots=True)
class Average:
    """The mean over the papers' four benchmarks.

    Attributes:
        value, stderr: as fractions; None where one of the scores has no standard error.
        scores: the four, in the order of PAPER.
    """

    value: float
    stderr: float | None
    scores: tuple[Score, ...]

    @property
    def text(self) -> str:
        """'52.10 ±1.40', in %."""
        spread = "" if self.stderr is None else f" ±{100 * self.stderr:.2f}"
        return f"{100 * self.value:.2f}{spread}"


def average(scores: Iterable[Score]) -> Average | None:
    """The mean over ARC, HellaSwag, TruthfulQA and MMLU, as in Tyukin et al.

    All four have one protocol, limit and number of shots. Of several such fours the checked one is taken,
    then the one on whole sets, then that of most documents. The standard error is that of a mean of
    independent numbers: sqrt(Σ e²) / 4.

    Args:
        scores: of one artefact.

    Returns:
        None unless all four are there.
    """
    alike: dict[tuple[str, int | None, int | None], dict[str, Score]] = {}
    for score in scores:
        if score.benchmark in PAPER:
            four = alike.setdefault((score.protocol, score.limit, score.num_fewshot), {})
            four[score.benchmark] = score
    whole = [tuple(four[name] for name in PAPER) for four in alike.values() if len(four) == len(PAPER)]
    if not whole:
        return None
    best = max(whole, key=_trust)
    errors = [score.stderr for score in best if score.stderr is not None]
    spread = math.sqrt(sum(error * error for error in errors)) / len(PAPER)
    value = sum(score.value for score in best) / len(PAPER)
    return Average(value, spread if len(errors) == len(PAPER) else None, best)


def _trust(scores: tuple[Score, ...]) -> tuple[bool, bool, int]:
    return (
        all(score.checked for score in scores),
        all(score.is_whole for score in scores),
        sum(score.n for score in scores),
    )
