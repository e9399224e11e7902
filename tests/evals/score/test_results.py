from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import store
from pipeline.evals.score import results
from pipeline.evals.score.benchmarks import PAPER
from pipeline.store.records import DataSource, Score
from pipeline.types import UserError
from tests import scoring

FOUR = dict(zip(PAPER, (0.2, 0.4, 0.6, 0.8), strict=True))


def score(benchmark: str = "arc", value: float = 0.25, **changes: Any) -> Score:
    fields: dict[str, Any] = {
        "variant": "base",
        "artefact": "graphs/tiny/base.fp32.onnx",
        "sha256": "0" * 64,
        "benchmark": benchmark,
        "title": benchmark,
        "metric": "acc_norm",
        "value": value,
        "stderr": 0.02,
        "n": 12,
        "protocol": "lm-eval",
        "complete": True,
        "checked": True,
    }
    return Score(**{**fields, **changes})


HARNESS_RESULTS = {"results": {}, "versions": {"arc": 1.0}, "config": {"device": "CPU", "artefact": "x"}}


def test_what_is_written_is_read_from_any_directory(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths in the file are relative to it: the project may move, the current directory does not matter."""
    rows = scoring.put(workdir / "data" / "rows.jsonl", scoring.ARC_ROW)
    sources = {
        "arc": {"test": DataSource(file=str(rows), rows=1), "train": DataSource(file="allenai/c4, en")}
    }
    graph = Path("graphs/tiny/base.fp32.onnx")
    graph.parent.mkdir(parents=True)
    graph.write_bytes(b"graph")
    written = results.write(score(limit=20), HARNESS_RESULTS, sources)
    path = Path("evals/results/tiny/base.fp32.score.arc.limit20.json")
    assert path == results.path_of(written) and results.read(path) == written
    record = json.loads(path.read_text())
    assert (
        record["pipeline"]["artefact"]
        == record["config"]["artefact"]
        == "../../../graphs/tiny/base.fp32.onnx"
    )
    assert record["data"]["arc"]["test"]["file"] == "../../../data/rows.jsonl"
    assert record["data"]["arc"]["train"]["file"] == "allenai/c4, en"
    moved = workdir.rename(workdir.with_name("moved é"))
    monkeypatch.chdir("/usr")
    assert results.read(moved / path).artefact == str(moved / graph)


def test_a_result_of_0_1_is_read(workdir: Path) -> None:
    """Its paths are from the project's folder."""
    graph = Path("graphs/tiny/base.fp32.onnx")
    graph.parent.mkdir(parents=True)
    graph.write_bytes(b"graph")
    old = {**score().plain(), "work": {"tokens": 1, "padding": 0, "passes": 1, "asked": 9}}
    del old["samples"]
    path = Path("evals/results/tiny/base.fp32.score.arc.json")
    store.write_json(path, {**HARNESS_RESULTS, "pipeline": old})
    assert results.read(path).artefact == str(graph)
    store.write_json(path, {**HARNESS_RESULTS, "pipeline": {**old, "value": "high"}})
    with pytest.raises(UserError, match=r"score\.arc\.json is not a valid record at 'pipeline\.value'"):
        results.read(path)


def test_samples_begin_with_what_people_look_for(workdir: Path) -> None:
    document = {
        "doc_id": 3,
        "doc": {"id": "q3"},
        "filtered_resps": [(-4.0, False), (-3.0, True)],
        "arguments": [("context", " yes"), ("context", " longer")],
    }
    text = {"doc_id": 4, "doc": {}, "filtered_resps": ["answer"], "arguments": []}
    written = results.write(score(), HARNESS_RESULTS, {}, {"arc": [document, text]})
    assert written.samples == "base.fp32.score.arc.samples.jsonl"
    path = results.path_of(written)
    rows = [json.loads(line) for line in path.with_name(written.samples).read_text().splitlines()]
    assert list(rows[0])[:5] == ["task", "id", "loglikelihoods", "pick", "pick_norm"]
    assert (rows[0]["id"], rows[0]["pick"], rows[0]["pick_norm"]) == ("q3", 1, 1)
    assert rows[1]["id"] == 4 and "pick" not in rows[1]
    assert results.read(path).samples == written.samples


def test_the_fullest_score_of_just_this_artefact(project: Path, graphs: list[Path]) -> None:
    contents = store.contents(graphs[1])
    own = {"artefact": str(graphs[1]), "sha256": store.sha256(graphs[1]), "contents": contents}
    for weights in (None, "0" * 64):  # of 0.2, and of other weights under the same graph
        results.write(score(n=50, **{**own, "contents": weights}), HARNESS_RESULTS, {})
        assert results.scores_of(graphs[1]) == []
    others = [score(n=20, limit=20, **own), score("boolq", n=3, limit=3, **own), score(n=12, **own)]
    others += [score("gsm8k", num_fewshot=2, **own), score("mmlu", artefact=str(graphs[1]))]
    for one in others:
        results.write(one, HARNESS_RESULTS, {})
    assert {one.benchmark: (one.n, one.artefact) for one in results.scores_of(graphs[1])} == {
        "arc": (12, str(graphs[1])),
        "boolq": (3, str(graphs[1])),
    }
    assert not results.scores_of(graphs[0])
    record = store.sidecar(graphs[1]).plain()
    graphs[1].write_bytes(graphs[1].read_bytes() + b"\0")
    store.write_sidecar(graphs[1], record)
    assert not results.scores_of(graphs[1])


def test_the_average_is_tyukins() -> None:
    mean = results.average([score(name, value) for name, value in FOUR.items()])
    assert mean is not None and mean.value == pytest.approx(0.5)
    assert mean.stderr == pytest.approx(0.01) and mean.text == "50.00 ±1.00"
    assert [one.benchmark for one in mean.scores] == list(PAPER)
    assert results.average([score(name) for name in PAPER[:3]]) is None
    without = results.average([score(name, stderr=None if name == "arc" else 0.02) for name in PAPER])
    assert without is not None and without.stderr is None and without.text == "25.00"


def test_an_average_is_of_one_protocol_limit_and_number_of_shots() -> None:
    for change in ({"protocol": "v1"}, {"limit": 20}, {"num_fewshot": 2}):
        assert results.average([score(n, **(change if n == "arc" else {})) for n in PAPER]) is None
        assert results.average([score(n, **change) for n in PAPER]) is not None


def test_of_several_averages_the_checked_and_whole_one_is_taken() -> None:
    fours = {
        0.1: {"checked": False, "protocol": "v1"},
        0.2: {"limit": 500, "n": 500},
        0.3: {"n": 100, "protocol": "v1-like"},
        0.4: {"n": 90},
    }
    for count, best in ((1, 0.1), (2, 0.2), (3, 0.3), (4, 0.3)):
        chosen = list(fours.items())[:count]
        mean = results.average([score(name, value, **c) for value, c in chosen for name in PAPER])
        assert mean is not None and mean.value == pytest.approx(best)
