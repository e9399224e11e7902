from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.evals.score import tokens
from pipeline.evals.score.words import TokenizerLM
from tests import tiny

WINDOWS = [[("The grass is", " green"), ("The grass is", " blue"), ("", "Once")], [("a", ""), ("é", " 数")]]


@pytest.fixture
def model(workdir: Path) -> TokenizerLM:
    folder = workdir / "graphs" / "tiny"
    tiny.checkpoint(folder, vocab_size=tiny.WORDS, num_hidden_layers=1)
    return TokenizerLM(tiny.tokenizer(folder))


@pytest.mark.slow
@pytest.mark.parametrize("few", [tokens.FEW, -1])
def test_windows_are_the_tokens_of_their_pairs(few: int, model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here, and in the process beside (`few` of −1)."""
    monkeypatch.setattr(tokens, "FEW", few)
    assert list(tokens.windows(model, WINDOWS)) == [model.encode_pairs(window) for window in WINDOWS]
    assert len(list(Path("evals/cache/tiny").glob("*.npz"))) == 2


def test_a_window_is_tokenised_once(model, monkeypatch: pytest.MonkeyPatch) -> None:
    first = list(tokens.windows(model, WINDOWS))
    monkeypatch.setattr(TokenizerLM, "encode_pairs", lambda *_: pytest.fail("tokenised again"))
    assert list(tokens.windows(model, WINDOWS)) == first
    with pytest.raises(pytest.fail.Exception, match="tokenised again"):
        list(tokens.windows(model, [WINDOWS[0][:2]]))  # another window
    with pytest.raises(pytest.fail.Exception, match="tokenised again"):
        list(tokens.windows(TokenizerLM(model.folder, "v1"), WINDOWS))  # another protocol


def test_another_tokenizer_makes_other_files(model) -> None:
    list(tokens.windows(model, WINDOWS))
    tiny.tokenizer(model.folder, bos=True)
    other = TokenizerLM(model.folder)
    assert next(tokens.windows(other, WINDOWS))[0] == (
        other.tok_encode("The grass is"),
        other.tok_encode(" green")[1:],
    )


def test_a_window_that_was_damaged_is_tokenised_again(model: TokenizerLM) -> None:
    wanted = list(tokens.windows(model, WINDOWS))
    file, *_ = sorted(Path("evals/cache/tiny").glob("*.npz"))
    whole = file.read_bytes()
    for content in (b"", whole[:100], whole.replace(b"NUMPY", b"NUMPX"), b"\x80\x04N."):
        file.write_bytes(content)
        assert tokens.read_kept(file) is None
        assert list(tokens.windows(model, WINDOWS)) == wanted
        assert tokens.read_kept(file) in wanted
