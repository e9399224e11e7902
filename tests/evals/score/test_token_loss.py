from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from pipeline.evals.score import benchmarks, token_loss
from pipeline.evals.score.harness import PipelineLM
from pipeline.types import UserError
from tests import scoring, tiny


def test_the_loss_is_per_token_over_log_v(project: Path, graphs: list[Path]) -> None:
    model = PipelineLM(graphs[0], journal=False)
    texts = token_loss.load(benchmarks.find("c4-loss"), project, None)
    results = texts.evaluate(model, None)
    pairs = [model.rolling(scoring.instances("loglikelihood_rolling", [(text,)]))[0] for text in texts.texts]
    nats, counts = np.array(pairs).T
    row = results["results"]["c4-loss"]
    assert row["loss,none"] == pytest.approx(-nats.sum() / counts.sum() / math.log(tiny.WORDS), rel=1e-5)
    # The standard error of a ratio of sums: sd(nats − loss · tokens) · sqrt(n) / Σ tokens.
    residuals = -nats - (-nats.sum() / counts.sum()) * counts
    expected = (
        math.sqrt((residuals**2).sum() / (len(nats) - 1) * len(nats)) / counts.sum() / math.log(tiny.WORDS)
    )
    assert row["loss_stderr,none"] == pytest.approx(expected, rel=1e-5)
    assert row["tokens,none"] == counts.sum() and len(results["samples"]["c4-loss"]) == 6
    assert results["n-samples"]["c4-loss"] == {"original": 6, "effective": 6}


def test_a_limit_leaves_texts_out_and_the_source_counts_all(project: Path) -> None:
    texts = token_loss.load(benchmarks.find("c4-loss"), project, 2)
    assert len(texts.texts) == 2 and texts.source.rows == 6 and texts.complete() is False
    assert len(texts.instances(1)["loglikelihood_rolling"]) == 1


def test_without_the_hub_and_without_data_it_says_so(workdir: Path) -> None:
    with pytest.raises(UserError, match=r"cannot fetch allenai/c4, en .*pass --data DIR with c4/validation"):
        token_loss.load(benchmarks.find("c4-loss"), None, 1)
    with pytest.raises(UserError, match=r"c4/validation\.jsonl .*is missing"):
        token_loss.load(benchmarks.find("c4-loss"), workdir, 1)
