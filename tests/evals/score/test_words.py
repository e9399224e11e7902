from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import store
from pipeline.evals.score.words import TokenizerLM
from pipeline.types import UserError
from tests import parity, tiny


def folder(root: Path, bos: bool = False) -> Path:
    path = root / "tiny"
    tiny.checkpoint(path, vocab_size=tiny.WORDS, num_hidden_layers=1, max_position_embeddings=48)
    return tiny.tokenizer(path, bos)


@pytest.mark.parametrize("bos", [False, True])
def test_pairs_are_the_tokens_of_the_hf_backend(bos: bool, workdir: Path) -> None:
    model = TokenizerLM(folder(workdir, bos))
    pairs = [
        ("The grass", " grows"),
        ("Answer:  ", "yes"),
        ("", "Once"),
        ("<s>The", " a"),
        ("the interp", "reter"),
    ]
    reference = parity.hf(model.folder)
    expected = [
        reference._encode_pair(*pair)
        if pair[0]
        else ([reference.prefix_token_id], reference.tok_encode(pair[1], add_special_tokens=False))
        for pair in pairs
    ]
    assert model.encode_pairs(pairs) == expected
    assert model.max_length == reference.max_length == 48
    assert (model.prefix_token_id, model.eot_token_id) == (reference.prefix_token_id, reference.eot_token_id)
    assert model.tok_decode(model.tok_encode("The grass")) == "The grass"


def test_nothing_to_predict_is_an_empty_continuation(workdir: Path) -> None:
    model = TokenizerLM(folder(workdir))
    assert model.encode_pairs([("", ""), ("The grass", "")]) == [
        ([model.prefix_token_id], []),
        (model.tok_encode("The grass"), []),
    ]


def test_v1_never_adds_a_bos(workdir: Path) -> None:
    path = folder(workdir, bos=True)
    now, v1 = TokenizerLM(path), TokenizerLM(path, "v1")
    assert now.tok_encode("The grass") == [1, *v1.tok_encode("The grass")]
    assert now.tok_encode("<s>The grass") == v1.tok_encode("<s>The grass")  # it has one already
    with pytest.raises(UserError, match="choose from lm-eval, v1"):
        TokenizerLM(path, "v0")


def test_requests_are_kept_in_the_project_of_the_model(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = TokenizerLM(folder(workdir / "a b" / "graphs"))
    monkeypatch.chdir("/usr")
    assert model.requests == workdir / "a b" / "evals" / "cache" / "tiny"
    other = TokenizerLM(model.folder, project=store.Project(workdir / "other"))
    assert other.requests == workdir / "other" / "evals" / "cache" / "tiny"
