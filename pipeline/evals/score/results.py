"""What a scoring run found: one JSON a (artefact, benchmark) in lm-eval's result form, and its tables for a person."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from pipeline import store
from pipeline.evals.score.benchmarks import PAPER

LOWER_IS_BETTER = ("loss",)


@dataclass(frozen=True, slots=True)
class Score:
    """One benchmark's value for one artefact.

    Attributes:
        metric: lm-eval's name of it; `loss` is the token loss over log V.
        value: as a fraction (a loss as it is); stderr its standard error, n the documents behind it.
        limit: documents a task at most, None for all of them.
        num_fewshot: examples before each question, where they are not the benchmark's own number.
        complete: whether these are the rows of the published set; None where the hub gave them.
        protocol: 'lm-eval', 'v1', or 'v1-like' where the shots or rows are not those of the protocol.
        work: tokens, padding and passes that this run put through the model; 0 for answers that were kept.
    """

    variant: str
    artefact: str
    sha256: str
    benchmark: str
    title: str
    metric: str
    value: float
    stderr: float | None
    n: int
    limit: int | None
    num_fewshot: int | None
    protocol: str
    complete: bool | None
    shots: str | None
    checked: bool
    work: dict[str, int]

    @property
    def key(self) -> str:
        """'arc', 'arc.v1', 'arc.0shot.limit20': what tells it from other scores of the artefact."""
        return key_of(self.benchmark, self.protocol, self.num_fewshot, self.limit)

    def text(self) -> str:
        """'26.88 ±1.30', in % but for a loss."""
        return text_of(self.value, self.stderr, self.metric)


def key_of(benchmark: str, protocol: str, num_fewshot: int | None, limit: int | None) -> str:
    """'arc', 'arc.v1', 'arc.0shot.limit20': the name of a benchmark's result among those of an artefact."""
    how = "" if protocol == "lm-eval" else ".v1"
    shots = "" if num_fewshot is None else f".{num_fewshot}shot"
    return benchmark + how + shots + (f".limit{limit}" if limit else "")


def text_of(value: float, stderr: float | None, metric: str) -> str:
    """'26.88 ±1.30', in % but for a loss."""
    scale, digits = (1, 4) if metric in LOWER_IS_BETTER else (100, 2)
    return f"{value * scale:.{digits}f}" + ("" if stderr is None else f" ±{stderr * scale:.{digits}f}")


def path_of(score: Score) -> Path:
    artefact = Path(score.artefact)
    return store.result_path(store.model_of(artefact), artefact, f"score.{score.key}")


def write(score: Score, results: dict[str, Any], samples: dict[str, list[dict[str, Any]]] | None) -> Path:
    """Writes the result, and the samples beside it where they are wanted."""
    from lm_eval.utils import handle_non_serializable

    path = path_of(score)
    plain = json.loads(json.dumps({**results, "pipeline": asdict(score)}, default=handle_non_serializable))
    if samples is not None:
        log = path.with_suffix(".samples.jsonl")
        with store.atomic(log) as temporary, temporary.open("w", encoding="utf-8") as out:
            for task, rows in samples.items():
                for row in rows:
                    out.write(
                        json.dumps(_sample(task, row), default=handle_non_serializable, ensure_ascii=False)
                        + "\n"
                    )
        plain["pipeline"]["samples"] = log.name
    store.write_json(path, plain)
    return path


def _sample(task: str, row: dict[str, Any]) -> dict[str, Any]:
    """lm-eval's sample, with what people look for in front: the question's id, the choices' log-likelihoods, the pick."""
    answers = row["filtered_resps"]
    front: dict[str, Any] = {"task": task, "id": row["doc"].get("id", row["doc"].get("idx", row["doc_id"]))}
    if answers and all(
        isinstance(a, (list, tuple)) and len(a) == 2 and isinstance(a[0], float) for a in answers
    ):
        found = [answer[0] for answer in answers]
        lengths = [max(1, len(arguments[1].lstrip(" "))) for arguments in row["arguments"]]
        normed = [value / length for value, length in zip(found, lengths, strict=True)]
        front |= {
            "loglikelihoods": found,
            "pick": found.index(max(found)),
            "pick_norm": normed.index(max(normed)),
        }
    return {**front, **row}


def scores_of(artefact: Path) -> list[Score]:
    """The scores that exist of just this artefact (same SHA-256), with the benchmarks' own shots; of each the fullest."""
    stem = store.result_path(store.model_of(artefact), artefact, "score").name.removesuffix(".json")
    digest = store.read_sidecar(artefact, quick=True)["sha256"]
    found: dict[str, Score] = {}
    for file in sorted(store.results_dir(store.model_of(artefact)).glob(f"{stem}.*.json")):
        record = {k: v for k, v in store.read_json(file).get("pipeline", {}).items() if k != "samples"}
        if record.get("sha256") == digest and record.get("num_fewshot") is None:
            score = Score(**record)
            best = found.get(score.benchmark)
            if best is None or _documents(score) > _documents(best):
                found[score.benchmark] = score
    return sorted(found.values(), key=lambda score: score.benchmark)


def _documents(score: Score) -> tuple[bool, int]:
    return score.limit is None, score.n


def average(scores: Iterable[Score]) -> tuple[float, float | None] | None:
    """(mean, standard error) over ARC, HellaSwag, TruthfulQA and MMLU, as in Tyukin et al.; None unless all four are there."""
    mine = {score.benchmark: score for score in scores}
    if not all(name in mine for name in PAPER):
        return None
    errors = [mine[name].stderr for name in PAPER]
    spread = None if None in errors else math.sqrt(sum(e * e for e in errors if e is not None)) / len(PAPER)
    return sum(mine[name].value for name in PAPER) / len(PAPER), spread


def table(scores: list[Score], beside: dict[str, dict[str, str]] | None = None) -> Table:
    """One row a variant, one column a benchmark, the average where all four are there.

    Args:
        beside: artefact → further columns and their text (latencies).
    """
    names = list(dict.fromkeys(score.benchmark for score in scores))
    rows: dict[str, list[Score]] = {}
    for score in scores:
        rows.setdefault(score.artefact, []).append(score)
    averages = {artefact: average(mine) for artefact, mine in rows.items()}
    others = list(dict.fromkeys(column for columns in (beside or {}).values() for column in columns))
    made = Table(title=_title(scores), caption=_caption(scores))
    made.add_column("variant", no_wrap=True)
    for name in [*names, *(["average"] if any(averages.values()) else []), *others]:
        made.add_column(name, justify="right", no_wrap=True)
    for artefact in dict.fromkeys([*rows, *(beside or {})]):
        mine = {score.benchmark: score for score in rows.get(artefact, [])}
        cells = [mine[name].text() + _mark(mine[name]) if name in mine else "" for name in names]
        if any(averages.values()):
            mean = averages.get(artefact)
            cells.append(
                ""
                if not mean
                else f"{100 * mean[0]:.2f}" + ("" if mean[1] is None else f" ±{100 * mean[1]:.2f}")
            )
        extra = [(beside or {}).get(artefact, {}).get(column, "") for column in others]
        made.add_row(
            Path(artefact).stem if artefact.endswith(".onnx") else "/".join(Path(artefact).parts[-2:]),
            *cells,
            *extra,
        )
    return made


def _mark(score: Score) -> str:
    return ("*" if score.complete is False or score.limit else "") + ("" if score.checked else " ?")


def _title(scores: list[Score]) -> str:
    protocols = {score.protocol for score in scores}
    return (
        f"scores in %, ± standard error; protocol {', '.join(sorted(protocols))}"
        if scores
        else "no scores yet"
    )


def _caption(scores: list[Score]) -> str:
    """What a reader must know before believing the table."""
    notes = []
    if partial := [s for s in scores if s.complete is False or s.limit]:
        counts = ", ".join(dict.fromkeys(f"{s.benchmark} {s.n}" for s in partial))
        notes.append(f"* not the whole published set (documents: {counts}): not a number to publish")
    for score in scores:
        if (
            score.num_fewshot is not None
            and (note := f"{score.benchmark}: {score.num_fewshot}-shot") not in notes
        ):
            notes.append(note)
        if score.shots and (note := f"{score.benchmark}: few-shot examples from {score.shots}") not in notes:
            notes.append(note)
    if any(score.metric in LOWER_IS_BETTER for score in scores):
        notes.append("a loss is the token loss over log V: lower is better")
    if not all(score.checked for score in scores):
        notes.append("? unchecked: nothing says that this artefact computes the right thing")
    return "\n".join(notes)
