from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.evals.score.settings import ModelSettings, ScoreSettings
from pipeline.types import UserError


def test_lm_evals_own_options_are_left_out() -> None:
    options = {"threads": 2, "unchecked": True, "batch_size": 1, "device": "cpu"}
    assert ModelSettings.of(options) == ModelSettings(threads=2, unchecked=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thread": 2}, "--model_args has no 'thread'; did you mean threads?"),
        ({"artifact": "x.onnx"}, "has no 'artifact'; did you mean artefact?"),
        ({"batchsize": 4}, "did you mean batch_size?"),
        ({"pretrained": "gpt2"}, "has no 'pretrained'; it takes artefact, protocol, batch_tokens, "),
        ({"limit": 3}, "has no 'limit'"),
        ({"threads": "two"}, "threads=two is no whole number"),
        ({"threads": True}, "threads=True is no whole number"),
        ({"unchecked": 1}, "unchecked=1 is no truth value"),
        ({"protocol": 1}, "protocol=1 is no text"),
        ({"provider": "gpu"}, "provider is cpu or cuda, not gpu"),
    ],
)
def test_what_is_misspelt_or_of_a_wrong_type_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ModelSettings.of(options)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ScoreSettings(limit=0), "--limit 0 is not at least 1"),
        (ScoreSettings(limit=10**20), "above 10\\^9"),
        (ScoreSettings(threads=-1), "--threads -1 is not between 0 and 10,000"),
        (ScoreSettings(threads=10**10), "is not between 0 and 10,000"),
        (ScoreSettings(num_fewshot=10**20), "is above 1,000"),
        (ScoreSettings(batch_tokens=0), "--batch-tokens must be at least 1"),
        (ScoreSettings(memory_mb=-1), "--cache-mb not negative"),
        (ScoreSettings(data=Path("nowhere")), "--data nowhere is no folder"),
    ],
)
def test_values_that_mean_nothing_are_refused(settings: ScoreSettings, message: str, workdir: Path) -> None:
    with pytest.raises(UserError, match=message):
        settings.validate()


def test_usual_values_are_taken(workdir: Path) -> None:
    ScoreSettings(limit=1, memory_mb=0, data=workdir).validate()
