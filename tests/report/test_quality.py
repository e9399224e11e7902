from __future__ import annotations

import math
from pathlib import Path

import pytest

from pipeline.report import collect
from pipeline.report.quality import average, length_of, quality, yardstick
from tests import results


def test_the_average_is_of_one_protocol_and_limit(workdir: Path) -> None:
    for benchmark, value in (("arc", 0.4), ("hellaswag", 0.5), ("truthfulqa", 0.6)):
        results.score("m", "base", benchmark, value, 0.02)
    results.score("m", "base", "mmlu", 0.9, limit=20, n=20)
    (artefact,) = collect.collect().artefacts
    assert average(artefact) is None and quality(artefact, "average") is None
    results.score("m", "base", "mmlu", 0.7, 0.02)
    (artefact,) = collect.collect().artefacts
    mean = average(artefact)
    assert mean and mean.percent == pytest.approx(55) and mean.stderr == pytest.approx(math.sqrt(4) * 2 / 4)
    assert {one.score.value for one in mean.scores} == {0.4, 0.5, 0.6, 0.7} and mean.marks() == ()
    assert mean.source.name.endswith(".json")


def test_without_the_four_the_benchmark_that_most_have_is_the_yardstick(workdir: Path) -> None:
    for variant in ("base", "attn1"):
        results.score("m", variant, "smoke", 0.78)
        results.score("m", variant, "smoke-loss", 0.28)
    results.score("m", "base", "arc", 0.5)
    artefacts = collect.collect().artefacts
    assert yardstick(artefacts) == "smoke" and yardstick([]) is None
    own = quality(artefacts[0], "smoke")
    assert own and (own.value, own.stderr) == (78, 1)
    results.whole("m", "base", 0.0, 0.6)
    assert yardstick(collect.collect().artefacts) == "smoke"  # a base alone is no comparison
    results.whole("m", "attn1", 8.0, 0.6)
    assert yardstick(collect.collect().artefacts) == "average"


def test_the_length_that_most_were_timed_at(workdir: Path) -> None:
    results.bench("m", "base", 0.0, lengths=(50, 100))
    assert length_of(collect.collect().artefacts) == 100
    results.bench("m", "attn1", 8.0, lengths=(50,))
    assert length_of(collect.collect().artefacts) == 50
    assert length_of([]) is None
