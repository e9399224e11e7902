from __future__ import annotations

from pathlib import Path

from pipeline.report import collect
from pipeline.report.rows import ArtefactResults, kind_of
from pipeline.types import SkipSet
from tests import results


def artefact(variant: str) -> ArtefactResults:
    return next(a for a in collect.collect().artefacts if a.variant == variant)


def test_kinds_and_fractions() -> None:
    def fraction(name: str, layers: int | None) -> float | None:
        skip = SkipSet.parse(name)
        return ArtefactResults("m", name, skip, "fp32", None, None, "graph", "0" * 64, layers).fraction

    names = ("base", "attn1", "mlp1", "block1", "attn1+mlp2")
    assert [kind_of(SkipSet.parse(name)) for name in names] == ["base", "attn", "mlp", "block", "mixed"]
    assert fraction("block1", 4) == 0.25 and fraction("attn1+mlp2-3", 4) == 3 / 8
    assert fraction("base", 4) == 0 and fraction("attn1", None) is None


def test_the_fullest_score_is_the_one_that_is_shown(workdir: Path) -> None:
    results.score("m", "base", "arc", 0.4, limit=20, n=20)
    results.score("m", "base", "arc", 0.5)
    results.score("m", "base", "arc", 0.9, num_fewshot=3)
    results.score("m", "base", "arc", 0.6, protocol="v1")
    best = artefact("base").score("arc")
    assert best and best.score.value == 0.6 and artefact("base").score("mmlu") is None
    assert best.device == results.DEVICE and best.versions == "lm_eval 0.4.13, arc 1.0"


def test_the_latency_of_the_artefact_itself_is_the_one_that_is_shown(workdir: Path) -> None:
    results.bench("m", "attn24-31", 8.0, lengths=(50,))
    results.bench("m", "base", 0.0, lengths=(50,), kind="torch")
    shown = artefact("attn24-31").latency(50)
    assert shown and shown.record.improvement == 8 and shown.workload == "prefill 50"
    assert shown.device == f"{results.DEVICE}, 2 threads" and shown.versions == "onnxruntime 1.27.0"
    assert artefact("attn24-31").latency(100) is None and artefact("attn24-31").latency(50, True) is None
    assert artefact("base").latency(50) is None


def test_marks_say_what_must_be_known(workdir: Path) -> None:
    results.score("m", "base", "arc", 0.4, limit=20, n=20, checked=False, shots="our own text")
    results.bench("m", "base", 0.0, lengths=(50,), enough_clean=False, above_ceiling=True)
    score, latency = artefact("base").results
    assert [mark.partition(":")[0] for mark in score.marks()] == [
        "20 documents, not the whole published set",
        "unchecked",
        "few-shot examples from our own text",
    ]
    assert [mark.partition(":")[0] for mark in latency.marks()] == [
        "too few undisturbed samples",
        "above its ceiling",
    ]
