"""Other ids than sentencepiece's are one line; the same ids are none."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, normalizers, pre_tokenizers

from pipeline.models.tokenizer import model_file, proof
from pipeline.models.tokenizer.settings import read_settings
from pipeline.types import UserError
from tests import tiny_sentencepiece

CHANGES = {
    "two spaces as one": normalizers.Replace("  ", " "),
    "no sign for a space": normalizers.Prepend("▁"),
    "line ends": normalizers.Replace("\r\n", "\n"),
    "lower case": normalizers.Lowercase(),
    "accents": normalizers.NFC(),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sentencepiece.train(tmp_path_factory.mktemp("spm"))


def made(folder: Path) -> Tokenizer:
    return model_file.tokenizer(folder / "tokenizer.model", read_settings(folder))[0]


def test_the_same_ids_pass(folder: Path) -> None:
    file = folder / "tokenizer.model"
    proof.refuse_other_ids(file, made(folder), model_file.read(file))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_normalizer_that_changes_ids_is_refused(change: normalizers.Normalizer, folder: Path) -> None:
    words, file = made(folder), folder / "tokenizer.model"
    words.normalizer = normalizers.Sequence([change, words.normalizer])
    with pytest.raises(UserError, match=r"tokenizer\.model: the tokenizer.*sentencepiece as.*copy") as caught:
        proof.refuse_other_ids(file, words, model_file.read(file))
    assert "\n" not in str(caught.value)


def test_pieces_that_are_not_taken_whole_are_refused(folder: Path) -> None:
    words, file = made(folder), folder / "tokenizer.model"
    words.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    with pytest.raises(UserError, match="<tool>"):
        proof.refuse_other_ids(file, words, model_file.read(file))
