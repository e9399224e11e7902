"""A tokenizer travels: llama.cpp reads the checkpoint's own ids, or the file is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers

from pipeline.graphs import export
from pipeline.models import checkpoint, demo
from pipeline.models import tokenizer as tokenizers
from pipeline.models.config import read_config
from pipeline.models.gguf import byte_level, header, vocabulary
from pipeline.ship.gguf import odd_texts, ship, words
from pipeline.types import UserError
from tests import tiny, tiny_gguf, tiny_sentencepiece, tokenizing
from tests.llamacpp_words import Words

LLAMA3, QWEN2 = (byte_level._LLAMA3_SPLIT % digits for digits in ("1,3", "1"))
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def of_kind(folder: Path, kind: str, rows: int | None = None, **changes: Any) -> Path:
    """A checkpoint with a tokenizer of tests.tokenizing."""
    return with_words(folder, Tokenizer.from_str(tokenizing.file_of(kind)), rows, **changes)


def with_words(folder: Path, made: Tokenizer, rows: int | None = None, **changes: Any) -> Path:
    tiny.checkpoint(folder, vocab_size=rows or made.get_vocab_size(), **changes)
    made.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def split_as(pattern: str, nfc: bool = False) -> Tokenizer:
    """A byte-level tokenizer whose words are split by a pattern."""
    made = Tokenizer.from_str(tokenizing.file_of("bytes-nfc" if nfc else "bytes"))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), level])
    made.decoder = decoders.ByteLevel()
    return made


def fields_of(folder: Path) -> dict[str, Any]:
    return words.of_checkpoint(folder, read_config(folder), "m").fields


@pytest.mark.parametrize(
    ("pre", "made"), [("gpt-2", None), ("llama-bpe", split_as(LLAMA3)), ("qwen2", split_as(QWEN2, nfc=True))]
)
def test_the_pre_tokenizer_is_the_one_that_gives_the_ids(
    pre: str, made: Tokenizer | None, tmp_path: Path
) -> None:
    folder = with_words(tmp_path / "m", made) if made else of_kind(tmp_path / "m", "bytes")
    fields = fields_of(folder)
    assert fields["tokenizer.ggml.model"] == "gpt2" and fields["tokenizer.ggml.pre"] == pre


def test_the_demos_is_known_without_its_gguf(demo_root: Path) -> None:
    folder = demo_root / "graphs" / demo.MODEL
    given = header.read(demo.gguf()).fields
    fields = fields_of(folder)
    same = ("model", "pre", "tokens", "merges", "bos_token_id", "eos_token_id")
    assert all(fields[f"tokenizer.ggml.{key}"] == given[f"tokenizer.ggml.{key}"] for key in same)
    assert fields["tokenizer.chat_template"] == given["tokenizer.chat_template"]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("bytes-split", "known here"),
        ("unigram", "kind Unigram"),
    ],
)
def test_other_tokenizers_are_refused(kind: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=reason):
        fields_of(of_kind(tmp_path / "m", kind))


def test_nfc_and_text_beside_special_tokens_are_said(tmp_path: Path) -> None:
    folder = with_words(tmp_path / "q", split_as(QWEN2, nfc=True))
    assert "NFC" in words.of_checkpoint(folder, read_config(folder), "m").notes[0]
    folder = of_kind(tmp_path / "p", "pieces")  # a space before the first word only
    (note,) = words.of_checkpoint(folder, read_config(folder), "m").notes
    assert "spaces at the beginning or around special tokens" in note
    folder = of_kind(tmp_path / "l", "pieces-legacy")
    assert words.of_checkpoint(folder, read_config(folder), "m").notes == ()


def test_rows_without_a_token_are_padded_and_tokens_without_a_row_refused(tmp_path: Path) -> None:
    fields = fields_of(of_kind(tmp_path / "m", "bytes", rows=400))
    tokens, types = (fields[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type"))
    assert len(tokens) == len(types) == 400 and tokens[-1] == "[PAD399]" and types[-1] == 5
    with pytest.raises(UserError, match="tokens beyond the 300 rows"):
        fields_of(of_kind(tmp_path / "n", "bytes", rows=300))


def test_every_end_of_a_text_is_there(tmp_path: Path) -> None:
    folder = of_kind(tmp_path / "m", "bytes")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 50, 51]}))
    fields = fields_of(folder)
    assert set(tokenizers.prompts(folder).conventions.ends) == {2, 50, 51}
    assert {2, 50, 51} <= set(vocabulary.end_tokens(folder, fields))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 50, 51, 52, 53]}))
    with pytest.raises(UserError, match="three keys"):
        fields_of(folder)


def test_chat_templates_travel(tmp_path: Path) -> None:
    folder = of_kind(tmp_path / "m", "bytes")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    named = [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": "x"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": named}))
    fields = fields_of(folder)
    assert fields["tokenizer.chat_template"] == TEMPLATE and fields["tokenizer.chat_template.tool_use"] == "x"
    assert fields["tokenizer.chat_templates"] == ["tool_use"]


def test_a_frame_that_llama_cpp_has_not_is_refused(tmp_path: Path) -> None:
    from tokenizers import processors

    made = Tokenizer.from_str(tokenizing.file_of("bytes"))
    made.post_processor = processors.TemplateProcessing(single="<unk> $A", special_tokens=[("<unk>", 0)])
    with pytest.raises(UserError, match="a BOS and an EOS alone"):
        fields_of(with_words(tmp_path / "m", made))


def sources(folder: Path) -> dict[str, Path]:
    """Checkpoints with tokenizers of every kind that is written."""
    made = {
        "bytes": of_kind(folder / "bytes", "bytes"),
        "bos": tiny_gguf.source(folder / "bos", bos=True),
        "llama3": with_words(folder / "llama3", split_as(LLAMA3)),
        "legacy": of_kind(folder / "legacy", "pieces-legacy"),
    }
    for prefix in (True, False):
        name = f"model-{prefix}"
        tiny_sentencepiece.train(
            tiny.checkpoint(folder / name, vocab_size=tiny_sentencepiece.WORDS), prefix=prefix
        )
        made[name] = folder / name
    return made


@pytest.mark.slow
def test_llama_cpp_reads_the_checkpoints_ids(workdir: Path) -> None:
    for name, folder in sources(workdir / "graphs").items():
        graph = export.export_base(checkpoint.open_checkpoint(folder))
        ship.ship(graph, workdir / f"{name}.gguf", unchecked=True)
        own = tokenizers.load(folder)
        special = [token.content for token in own.backend.get_added_tokens_decoder().values()]
        with Words(workdir / f"{name}.gguf") as theirs:
            for text in (*odd_texts.plain(special, first_only=False), "a</s>b", "<s>user\nhi</s>"):
                if "\x00" not in text:
                    assert theirs.ids(text) == own.encode(text), (name, text)
