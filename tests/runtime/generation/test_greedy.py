from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.engines import opening
from pipeline.graphs import export
from pipeline.models import checkpoint
from pipeline.models.reference import Reference
from pipeline.runtime.generation.greedy import greedy_batch
from pipeline.types import UserError
from tests import tiny

PROMPTS = [[5, 6, 7], [9], [11, 12, 13, 14, 15], [20, 21]]


@pytest.fixture
def folder(workdir: Path) -> Path:
    return checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny", eos_token_id=None))).folder


def test_texts_are_pytorchs_in_the_order_in_which_they_finish(folder: Path) -> None:
    reference = Reference(folder)
    truth = [reference.generate(prompt, 6) for prompt in PROMPTS]
    lengths = [6, 2, 4, 3]

    def ends(tokens: list[int]) -> bool:
        return any(tokens == text[:n] for text, n in zip(truth, lengths, strict=True))

    with opening.open_runner(export.export_base(checkpoint.open_checkpoint(folder))) as runner:
        rows = list(greedy_batch(runner, PROMPTS, 6, ends, rows=4))
        assert {row.number: row.tokens for row in rows} == {
            number: text[:n] for number, (text, n) in enumerate(zip(truth, lengths, strict=True))
        }
        assert [row.number for row in rows] == [1, 3, 2, 0] and all(row.error is None for row in rows)
        assert [row.number for row in greedy_batch(runner, PROMPTS, 2, lambda _: False, rows=1)] == [
            0,
            1,
            2,
            3,
        ]


def test_one_text_ends_with_its_stop_token(folder: Path) -> None:
    truth = Reference(folder).generate(PROMPTS[0], 6)
    first = truth.index(truth[3])
    with opening.open_runner(export.export_base(checkpoint.open_checkpoint(folder))) as runner:
        (whole,) = greedy_batch(runner, [PROMPTS[0]], 6, lambda _: False)
        (ended,) = greedy_batch(runner, [PROMPTS[0]], 6, lambda tokens: tokens[-1] == truth[3])
    assert whole.tokens == truth and ended.tokens == truth[: first + 1]


def test_prompts_that_are_refused_leave_the_others_alone(folder: Path) -> None:
    """An empty one, an unknown token, a negative one: each ends with its error, which names the token."""
    truth = Reference(folder).generate(PROMPTS[2], 6)
    with opening.open_runner(export.export_base(checkpoint.open_checkpoint(folder))) as runner:
        prompts = [[], [5, 96], PROMPTS[2], [-1]]
        written = {row.number: row for row in greedy_batch(runner, prompts, 6, lambda _: False)}
        assert written[2].tokens == truth and written[2].error is None
        messages = [str(written[number].error) for number in (0, 1, 3)]
        assert messages[0] == "the prompt holds no token"
        assert "token 96" in messages[1] and "its 96 rows" in messages[1] and "token -1" in messages[2]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_end_the_text(
    value: float, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opening.open_runner(export.export_base(checkpoint.open_checkpoint(folder))) as runner:
        forward = runner.forward

        def overflowing(*arguments: Any, **more: Any) -> Any:
            logits, cache = forward(*arguments, **more)
            logits[0, -1, 3] = value
            return logits, cache

        monkeypatch.setattr(runner, "forward", overflowing)
        (row,) = greedy_batch(runner, [PROMPTS[0]], 6, lambda _: False)
    assert row.tokens == [] and isinstance(row.error, UserError)
    assert re.search(r"not finite \(NaN or infinity\).*float16", str(row.error))
