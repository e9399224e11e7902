"""Tokenizers without a tokenizer.json: converted, kept, or refused by name."""

from __future__ import annotations

import base64
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from pipeline import store
from pipeline.models import texts, tokenizer
from pipeline.models.tokenizer import conversion
from pipeline.types import UserError
from tests import tiny, tiny_sentencepiece, tokenizing
from tests.tokenizing import ODD

sentencepiece = pytest.importorskip("sentencepiece")


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.model."""
    folder = tmp_path_factory.mktemp("spm")
    (folder / "text").write_text(texts.text()[:20_000])
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=400,
        model_type=request.param,
        byte_fallback=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        minloglevel=2,
    )
    return folder / "tokenizer.model"


def checkpoint(workdir: Path, model: Path, **config: Any) -> Path:
    folder = workdir / "graphs" / "m"
    folder.mkdir(parents=True)
    shutil.copy(model, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 400}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **config}))
    return folder


def test_sentencepieces_model_is_converted_once(
    model: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint(workdir, model)
    words, theirs = tokenizer.load(folder), tiny_sentencepiece.processor(folder)
    plain = [text for text in ODD if "<" not in text]
    assert [words.encode(text) for text in plain] == [[1, *theirs.encode(text)] for text in plain]
    assert words.special == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert len(list((workdir / "calib" / "m").glob("tokenizer-*.json"))) == 1
    monkeypatch.setattr(conversion, "_of_sentencepiece", None)
    again = tokenizer.load(folder)
    assert [again.encode(text) for text in ODD] == [words.encode(text) for text in ODD]


@pytest.mark.skipif(tiny.TRANSFORMERS > 4, reason="version 5 reads tokenizer.json there, as it is")
@pytest.mark.parametrize("model", ["bpe"], indirect=True)
@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("prefix", [True, False])
def test_add_prefix_space_beside_a_tokenizer_json_means_the_conversion_of_the_model(
    legacy: bool, prefix: bool, model: Path, workdir: Path
) -> None:
    """transformers' LlamaTokenizerFast then reads tokenizer.model and not tokenizer.json."""
    folder = checkpoint(workdir, model, legacy=True)
    AutoTokenizer.from_pretrained(folder).save_pretrained(workdir / "saved")
    shutil.copy(workdir / "saved" / "tokenizer.json", folder)
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy, "add_prefix_space": prefix}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    truth, words = AutoTokenizer.from_pretrained(folder), tokenizer.load(folder)
    for text in ODD:
        ids = truth.encode(text)
        assert words.encode(text) == ids and words.decode(ids) == truth.decode(ids)


def test_a_damaged_copy_is_made_again(model: Path, workdir: Path) -> None:
    folder = checkpoint(workdir, model)
    ids = tokenizer.load(folder).encode("the time")
    (file,) = (workdir / "calib" / "m").glob("tokenizer-*.json")
    file.write_text("{}")
    assert tokenizer.load(folder).encode("the time") == ids
    assert store.read_json(file)["special"]["bos_token"] == "<s>"


def test_a_vocabulary_and_merges_are_converted(workdir: Path) -> None:
    folder = workdir / "graphs" / "m"
    tokenizing.put(folder, "bytes", tokenizer_config={"tokenizer_class": "GPT2Tokenizer"})
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [" ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    truth, words = AutoTokenizer.from_pretrained(folder), tokenizer.load(folder)
    assert [words.encode(text) for text in ODD] == [truth.encode(text) for text in ODD]


def test_without_sentencepiece_the_extra_is_named(
    model: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "sentencepiece" else find(name)
    )
    with pytest.raises(UserError, match=r"needs sentencepiece; run .*skip-pipeline\[sentencepiece\]"):
        tokenizer.load(checkpoint(workdir, model))


def test_tiktokens_model_is_refused_by_name(workdir: Path, tmp_path: Path) -> None:
    lines = [b" ".join((base64.b64encode(bytes([k])), str(k).encode())) for k in range(256)]
    (tmp_path / "tokenizer.model").write_bytes(b"\n".join(lines))
    with pytest.raises(UserError, match="is tiktoken's"):
        tokenizer.load(checkpoint(workdir, tmp_path / "tokenizer.model"))


def test_a_model_that_is_none_is_one_line(workdir: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\0\1\2 no model")
    with pytest.raises(UserError, match="is no model of sentencepiece's") as caught:
        tokenizer.load(checkpoint(workdir, tmp_path / "tokenizer.model"))
    assert "\n" not in str(caught.value)
    assert not (workdir / "calib").exists()


@pytest.mark.parametrize("model", ["unigram"], indirect=True)
def test_what_transformers_makes_of_it_has_sentencepieces_ids_or_is_refused(
    model: Path, workdir: Path
) -> None:
    """T5Tokenizer: the library's form of nmt_nfkc drops accents, in any version of transformers."""
    folder = checkpoint(workdir, model)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer"}))
    with pytest.raises(UserError, match=r"sentencepiece as .*; copy the model's tokenizer\.json") as caught:
        tokenizer.load(folder)
    assert "\n" not in str(caught.value)
    assert not (workdir / "calib").exists()
