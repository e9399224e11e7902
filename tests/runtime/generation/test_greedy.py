from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.engines import opening
from pipeline.graphs import export
from pipeline.models import checkpoint
from pipeline.models.reference import Reference
from pipeline.runtime.generation.greedy import greedy, greedy_batch
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
        assert greedy(runner, PROMPTS[0], 6) == truth
        assert greedy(runner, PROMPTS[0], 6, frozenset({truth[3]})) == truth[: first + 1]
        with pytest.raises(UserError, match="holds no token"):
            greedy(runner, [], 6)
