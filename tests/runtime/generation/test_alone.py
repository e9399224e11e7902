from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.engines import opening
from pipeline.graphs import export
from pipeline.models import checkpoint, tokenizer
from pipeline.models.reference import Reference
from pipeline.runtime.generation import alone
from pipeline.runtime.generation.sampling import Sampling
from pipeline.runtime.generation.writer import Piece
from pipeline.runtime.runner import Runner
from pipeline.types import UserError
from tests import tiny


@pytest.fixture
def folder(workdir: Path) -> Path:
    source = tiny.checkpoint(workdir / "tiny", vocab_size=tiny.WORDS, eos_token_id=None)
    return checkpoint.resolve(str(tiny.tokenizer(source))).folder


def test_the_pieces_are_the_text_and_come_as_it_is_written(folder: Path) -> None:
    prompts, seen = tokenizer.prompts(folder), list[Piece]()
    prompt = prompts.encode("The list of names")
    truth = Reference(folder).generate(prompt, 8)
    with opening.open_runner(export.export_base(checkpoint.open_checkpoint(folder))) as runner:
        pieces = alone.pieces(runner, prompts, prompt, Sampling(8, ignore_eos=True), seen.append)
    assert pieces == seen and [piece.token for piece in pieces] == truth
    assert "".join(piece.text for piece in pieces) == prompts.tokenizer.decode(truth)
    assert [piece.finish for piece in pieces] == [None] * 7 + ["length"]


def test_what_the_runner_raises_reaches_the_caller(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    prompts = tokenizer.prompts(folder)
    with opening.open_runner(export.export_base(checkpoint.open_checkpoint(folder))) as runner:
        with pytest.raises(UserError, match="max_tokens is 300"):
            alone.pieces(runner, prompts, [5], Sampling(300))
        monkeypatch.setattr(Runner, "forward", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            alone.pieces(runner, prompts, [5], Sampling(3))
