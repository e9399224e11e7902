"""`pipeline select --finalists`, as a user runs it: every stage once, one table, and nothing twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline import store
from pipeline.calib import similarity
from pipeline.calib.latency_budget import Round
from pipeline.calib.selectors import Choice, ModelStatistics
from pipeline.cli import finalists, prerequisites, timing
from pipeline.cli.budgets import TimedChoice
from pipeline.evals.bench import bench
from pipeline.evals.check import check
from pipeline.evals.score import results, score
from pipeline.graphs import merge
from pipeline.models.reference import Reference
from pipeline.report import collect
from pipeline.store.records import FinalistsRecord, Score, SublayerTimes, parse
from pipeline.types import CPU, SkipSet, UserError
from tests import tiny
from tests.commands import run

SELECT = ("select", "m", "--kind", "mlp", "--count", "1")


@pytest.fixture
def brief(unweighed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few sequences of each kind: the numbers mean nothing here."""
    monkeypatch.setattr(finalists, "NOMINATED", 2)
    monkeypatch.setattr(finalists, "JUDGED", 3)
    monkeypatch.setattr(timing, "PROBES", 3)


def compared(capsys: pytest.CaptureFixture[str], *options: object) -> FinalistsRecord:
    answer = run(capsys, *SELECT, *options, "--json")
    return parse(FinalistsRecord, answer.encode(), Path("stdout"))


@pytest.mark.usefixtures("brief")
def test_nothing_is_measured_twice(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--finalists", "2", "--tasks", "none", "--with", "bias")
    first = compared(capsys, *options)
    base, *rows = first.rows
    assert (base.variant, base.speedup, base.artefact) == ("base", 1.0, str(model / "base.fp32.onnx"))
    assert abs(base.divergence) < 1e-6 and base.on_divergence_front and base.nominee_loss is None
    assert {row.variant for row in rows} == {"mlp0~bias", "mlp1~bias"}
    assert [row.variant for row in rows if row.is_choice] == ["mlp1~bias"]  # `last`
    assert [row.nominee_loss for row in rows] == sorted(row.nominee_loss or 0 for row in rows)
    for row in rows:
        assert store.check_passed(Path(row.artefact)) and row.divergence > 0 and row.loss != base.loss
        kept = timing.latencies([Path(row.artefact)], 100)[Path(row.artefact)]
        assert (row.milliseconds, 1 / row.speedup) == pytest.approx((kept.p50, 1 - kept.improvement / 100))
    assert (first.samples, first.nominees, first.form, first.texts.skipped) == (3, 2, "bias", 130)

    def fail(*_: object, **__: object) -> None:
        pytest.fail("measured again")

    for place, name in ((bench, "bench"), (check, "check"), (Reference, "__init__")):
        monkeypatch.setattr(place, name, fail)
    assert compared(capsys, *options) == first
    table = run(capsys, *SELECT, *options)
    assert "mlp1 <" in table and "front" in table and "average" not in table


@pytest.mark.usefixtures("brief")
def test_without_a_compensation_the_bare_graphs_are_compared(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = compared(capsys, "--finalists", "1", "--tasks", "none", "--with", "none")
    (row,) = record.rows[1:]
    assert (row.variant, row.artefact) == ("mlp1", str(model / "mlp1.fp32.onnx"))
    assert not list(model.glob("*~*")) and record.form == "none"


@pytest.mark.slow
@pytest.mark.usefixtures("brief")
def test_from_a_choice_to_scores_in_one_merged_graph(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    merges: list[list[str]] = []
    whole = merge.merge

    def counted(graphs: list[Path]) -> Path:
        merges.append([graph.name for graph in graphs])
        return whole(graphs)

    monkeypatch.setattr(merge, "merge", counted)
    options = ("--finalists", "2", "--tasks", "smoke")
    first = compared(capsys, *options)
    names = [Path(row.artefact).name for row in first.rows]
    assert names[0] == "base.fp32.onnx" and merges == [names]
    for row in first.rows:
        (smoke,) = row.scores
        assert smoke.benchmark == "smoke" and row.average == smoke.value and smoke.checked
        alone = score.score([Path(row.artefact)], ["smoke"])  # from the answers that the merged graph gave
        assert alone[0].value == smoke.value
    artefacts = {one.name: one for one in collect.collect().artefacts}
    for name in ("mlp0~linear.fp32", "mlp1~linear.fp32"):
        assert artefacts[name].latency(100) and artefacts[name].score("smoke")  # `report` shows both
    monkeypatch.setattr(score, "score", lambda *_: pytest.fail("scored again"))
    assert compared(capsys, *options) == first and len(merges) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--finalists", "0"), "--finalists 0 is not at least 1"),
        (("--finalists", "-2"), "--finalists -2 is not at least 1"),
        (
            ("--finalists", "3", "--tasks", "none"),
            "more than there are: 2 skip sets like mlp1",
        ),
        (
            ("--finalists", "2", "--with", "cubic"),
            "--with 'cubic' names no compensation; choose linear",
        ),
        (("--finalists", "2", "--tasks", "smokey"), "smokey"),
        (("--with", "bias"), "--with is for --finalists N"),
        (("--tasks", "smoke"), "--tasks is for --finalists N"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    model: Path, options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(model.iterdir())
    with pytest.raises(UserError, match=message) as error:
        run(capsys, *SELECT, *options)
    assert len(str(error.value).splitlines()) == 1 and sorted(model.iterdir()) == before
    assert not Path("evals/results").exists()


def test_nothing_left_out_and_too_little_text(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ("--finalists", "2", "--tasks", "none")
    with pytest.raises(UserError, match="nothing is left out"):
        run(capsys, "select", "m", "--kind", "mlp", "--count", "0", *line)
    Path("short.txt").write_text("A short text. " * 50)
    with pytest.raises(UserError, match="give more --texts"):
        run(capsys, *SELECT, *line, "--texts", "short.txt")
    assert not Path("evals/results").exists()


def timed_choice(skip: str, reached: bool = True, search: Choice | None = None) -> TimedChoice:
    rounds = [Round(SkipSet.parse(skip), 0.1, 1.3, 1.3)]
    seconds = SublayerTimes(whole=1.0, attn=0.1, mlp=0.1)
    return TimedChoice("any", 20, seconds, rounds, reached, search=search)


def test_a_choice_for_a_time_brings_its_own_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """That of damage where a programme was solved; a search's runners-up where one was made."""
    cosines = {"cosine_attn": np.array([[0.5, 0.6, 0.7]]), "cosine_mlp": np.array([[0.9, 0.8, 0.1]])}
    measured = similarity.Similarity(tiny.similarity_record(), mean=cosines, stderr={})
    monkeypatch.setattr(ModelStatistics, "similarity", measured)
    statistics = ModelStatistics(Path("graphs/m"))
    nomination = finalists.timed(timed_choice("attn2+mlp0"), statistics, CPU)
    assert (nomination.rule, nomination.length, nomination.choice.skip.name) == ("cosine", 20, "attn2+mlp0")
    assert [name for name, _ in nomination.choice.chosen] == ["mlp0", "attn2"]
    assert [name for name, _ in nomination.choice.stays] == ["mlp1", "attn1", "attn0", "mlp2"]
    search = Choice(SkipSet((1,)), runners_up=((SkipSet((1,)), 0.1), (SkipSet((2,)), 0.2)))
    nomination = finalists.timed(timed_choice("attn1", search=search), statistics, CPU)
    assert nomination.choice is search and nomination.rule == "evo"
    assert capsys.readouterr().err == ""
    finalists.timed(timed_choice("mlp0", reached=False), statistics, CPU)
    assert "the time was not reached" in capsys.readouterr().err


def put_score(graph: Path, name: str) -> None:
    """Writes the result of a benchmark, without running it."""
    one = Score(
        variant=store.variant(graph).name,
        artefact=str(graph),
        sha256=store.sha256(graph),
        contents=store.contents(graph),
        benchmark=name,
        title=name,
        metric="acc",
        value=0.5,
        n=10,
        protocol="lm-eval",
        checked=True,
    )
    path = results.path_of(one)
    store.write_json(path, {"pipeline": one.replaced(artefact=store.relative(graph, path)).plain()})


def test_scores_stand_in_the_order_of_the_tasks(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mean of benchmarks shows those that it is of; with no tasks there are none."""
    graph = model / "mlp1.fp32.onnx"
    assert prerequisites.scored_together([graph], None) == {graph: []}
    asked: list[list[str]] = []
    monkeypatch.setattr(prerequisites, "merged", lambda *_: Path("merged.onnx"))

    def answered(paths: list[Path], names: list[str], *_: object) -> None:
        asked.append(names)
        for name in ("smoke", "probes", "probe-copy", "probe-facts", "probe-brackets", "probe-arithmetic"):
            if name == "smoke" or "probes" in names:
                put_score(paths[0], name)

    monkeypatch.setattr(score, "score", answered)
    order = ["probe-arithmetic", "probe-brackets", "probe-copy", "probe-facts", "smoke"]
    for _ in range(2):
        scores = prerequisites.scored_together([graph], "probes,smoke")[graph]
        assert [one.benchmark for one in scores] == order
    assert asked == [["probes", "smoke"]]
