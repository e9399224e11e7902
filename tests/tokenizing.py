"""Small tokenizers of the kinds that models have, trained on a few lines, and texts that trouble them."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIAL = ["<unk>", "<s>", "</s>"]
_LINES = [
    "the ship sailed into the harbour at dawn and the crew bought bread",
    "naïve café 日本語 123 456",
    "def add(a, b):\n    return a + b\n",
] * 5
ODD = (
    "",
    "a",
    "  two  spaces ",
    "\ttab\r\n\r\nCRLF",
    "nul\0x",
    "👩‍👩‍👧‍👦 joined",
    "日本語 テキスト",
    "שלום עולם مرحبا",
    "e\u0301 n\u0303 \u1112\u1161\u11ab",
    "<s>hi</s>",
    " <s> hi </s> x",
    "hi<s>.",
    "x" * 3000,
    "don't I'm we've",
    "<|im_start|>user\n<|im_end|>",
    "<|im_start|> a <|im_end|> b",
    "<unk> <pad>",
    "\u2581a \u2581",
    "\ufeffbom",
    "   ",
    "\n\n",
    "12345 67",
    "<|endoftext|>x",
)


def _bytes(splits: bool = False, nfc: bool = False, prefix: bool = False) -> Tokenizer:
    """GPT-2's, Llama 3's or Qwen's: bytes."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    if splits:
        pattern = Regex(r"\p{N}| ?\p{L}+|\s+|[^\s\p{L}\p{N}]+")
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(pattern, "isolated"), level])
    words.normalizer = normalizers.NFC() if nfc else None
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=350,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator(_LINES, trainer)
    return words


def _pieces(legacy: bool) -> Tokenizer:
    """Llama's, as it is made of sentencepiece's."""
    words = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    words.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    octets = [f"<0x{number:02X}>" for number in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL + octets, show_progress=False)
    words.train_from_iterator(_LINES, trainer)
    fields = json.loads(words.to_str())
    fields["added_tokens"] = fields["added_tokens"][:3]
    words = Tokenizer.from_str(json.dumps(fields))
    if not legacy:
        words.normalizer = None
        words.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
    words.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return words


def _unigram() -> Tokenizer:
    words = Tokenizer(models.Unigram())
    words.normalizer, words.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    words.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=100, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    words.train_from_iterator(_LINES, trainer)
    return words


KINDS = {
    "bytes": lambda: _bytes(),
    "bytes-prefix": lambda: _bytes(prefix=True),
    "bytes-split": lambda: _bytes(splits=True),
    "bytes-nfc": lambda: _bytes(nfc=True),
    "pieces-legacy": lambda: _pieces(legacy=True),
    "pieces": lambda: _pieces(legacy=False),
    "unigram": _unigram,
}
"""Kind of tokenizer → what makes one."""


@cache
def file_of(kind: str) -> str:
    """tokenizer.json of a kind."""
    text: str = KINDS[kind]().to_str()
    return text


def put(folder: Path, kind: str, **files: Any) -> Path:
    """A folder with nothing but the tokenizer of a kind; `files`: name without .json → content."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(file_of(kind))
    for name, content in {"config": {"model_type": "llama"}, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def token(content: str, **flags: Any) -> dict[str, Any]:
    """A token as tokenizer_config.json writes it."""
    fields = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    return {"content": content, **fields, "special": True, **flags}
