"""Token sequences: exact lengths, the same every time, and a cache that is used until it is stale."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, processors

from pipeline import store
from pipeline.models import texts, tokenizer
from pipeline.types import UserError
from tests import tiny


def character_tokenizer(folder: Path, bos: bool = False, shift: int = 0) -> Path:
    """A tokenizer of single characters, 96 ids, with a BOS where asked."""
    folder.mkdir(parents=True, exist_ok=True)
    characters = [chr(32 + (k + shift) % 94) for k in range(94)]
    words = Tokenizer(
        models.BPE({c: k for k, c in enumerate(["<unk>", "<s>", *characters])}, [], unk_token="<unk>")
    )
    if bos:
        words.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    words.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"})
    )
    return folder


def cached(folder: Path) -> list[Path]:
    return sorted(store.Project().calib(folder.name).glob("*.npy"))


def repeated(folder: Path, length: int, count: int) -> np.ndarray:
    return texts.cut(folder, texts.OWN, length, count, when_short="repeat")[0]


def test_lengths_are_exact_and_the_text_is_real(workdir: Path) -> None:
    folder = character_tokenizer(workdir / "m")
    tokens = repeated(folder, 100, 1000)
    assert tokens.shape == (1000, 100) and tokens.dtype == np.int64
    assert len(np.unique(tokens, axis=0)) > 990
    words = tokenizer.load(folder)
    assert "".join(map(words.backend.id_to_token, tokens[0].tolist())) == texts.text()[:100].replace(
        "\n", "<unk>"
    )


def test_it_is_the_same_every_time_and_longer_counts_begin_alike(workdir: Path) -> None:
    folder = character_tokenizer(workdir / "m")
    first = repeated(folder, 50, 20)
    assert (repeated(folder, 50, 30)[:20] == first).all()
    cached(folder)[0].unlink()
    assert (repeated(folder, 50, 20) == first).all()


def test_every_sequence_begins_as_the_tokenizer_begins_a_text(workdir: Path) -> None:
    tokens = repeated(character_tokenizer(workdir / "m", bos=True), 8, 5)
    assert (tokens[:, 0] == 1).all() and not (tokens[:, 1:] == 1).any()
    assert repeated(workdir / "m", 1, 2).tolist() == [[1], [1]]


def test_when_the_text_runs_out_it_starts_again_elsewhere(workdir: Path) -> None:
    folder = character_tokenizer(workdir / "m")
    length = len(texts.text()) // 3
    tokens = repeated(folder, length, 6)
    assert tokens.shape == (6, length)
    assert len(np.unique(tokens, axis=0)) == 6
    with pytest.raises(UserError, match="the text has"):
        repeated(folder, 10 * length, 1)
    with pytest.raises(UserError, match="cannot cut"):
        repeated(folder, 0, 1)


def test_the_cache_is_used_and_another_tokenizer_gets_its_own(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = character_tokenizer(workdir / "m")
    first = repeated(folder, 10, 2)
    assert len(cached(folder)) == 1

    def refuse(_folder: Path) -> None:
        raise AssertionError("the tokenizer was loaded although the cache is warm")

    with monkeypatch.context() as patched:
        patched.setattr(texts, "tokenizer", refuse)
        assert (repeated(folder, 10, 2) == first).all()
    _, source = texts.cut(folder, texts.OWN, 10, 2)
    character_tokenizer(folder, shift=5)
    assert not (repeated(folder, 10, 2) == first).all()
    _, other = texts.cut(folder, texts.OWN, 10, 2)
    assert source.ids != other.ids and source.replaced(ids=None) == other.replaced(ids=None)
    assert len(cached(folder)) == 2


def test_another_text_is_not_taken_from_the_cache(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = character_tokenizer(workdir / "m")
    first = repeated(folder, 10, 2)
    monkeypatch.setattr(texts, "text", lambda: "Quite another text. " * 50)
    assert not (repeated(folder, 10, 2) == first).all()


def test_a_warm_cache_imports_neither_torch_nor_transformers(workdir: Path) -> None:
    folder = character_tokenizer(workdir / "m")
    repeated(folder, 10, 2)
    script = (
        "import sys; from pathlib import Path; from pipeline.models import texts; "
        "texts.sequences(Path('m'), 50, 1000); "
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=tiny.environment()
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("length", "count"), [(8, 10**30), (10**30, 1), (8, 0)])
def test_counts_that_no_text_has_are_refused(length: int, count: int, workdir: Path) -> None:
    with pytest.raises(UserError, match="cannot cut"):
        texts.cut(workdir, texts.OWN, length, count)


def test_no_tokenizer_is_one_clear_line(workdir: Path) -> None:
    (workdir / "m").mkdir()
    with pytest.raises(UserError, match="holds no tokenizer"):
        repeated(workdir / "m", 10, 1)


def test_a_tokenizer_may_be_a_vocabulary_and_merges_alone(workdir: Path) -> None:
    folder = workdir / "m"
    folder.mkdir()
    words = models.BPE({"<|endoftext|>": 0, **{chr(32 + k): k + 1 for k in range(94)}}, [])
    words.save(str(folder))
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert not list(folder.glob("tokenizer*"))
    assert texts.cut(folder, texts.OWN, 8, 2)[0].shape == (2, 8)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": null}\n', r"a\.jsonl, line 2: no JSON object with a 'text'"),
        ("a.jsonl", b'{"text": ["a"]}\n', "line 1: no JSON object with a 'text'"),
        ("a.jsonl", b'{"text": "a", "text": "b"}\n', "line 1: .*'text' stands there twice"),
        ("a.txt", "ab".encode("utf-16-le"), "line 1: holds a NUL"),
        ("a.csv", b"text\na\n", "is no text; give .txt, or .jsonl"),
        ("a.parquet", b"PAR1", "is no text"),
    ],
)
def test_a_file_that_is_no_text_is_refused(name: str, data: bytes, message: str, workdir: Path) -> None:
    Path(name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        texts.TextInput(files=(Path(name),)).read(10)


def test_a_byte_order_mark_is_no_text(workdir: Path) -> None:
    Path("a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    assert texts.TextInput(files=(Path("a.txt"),)).read(10)[0] == "one\ntwo"
