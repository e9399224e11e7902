"""A GGUF's tokenizer held to the checkpoint's own: which fields give the same ids.

llama.cpp's converter knows a pre-tokenizer by a table of hashes. Here the fields are read back as llama.cpp
reads them (`models.gguf.tokenizer`), and compared on texts that trouble tokenizers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pipeline.models.gguf import tokenizer as gguf_tokenizer
from pipeline.models.tokenizer import CheckpointTokenizer
from pipeline.ship.gguf import odd_texts, pieces
from pipeline.types import UserError

Fields = dict[str, Any]


def chosen(
    folder: Path, words: CheckpointTokenizer, candidates: Sequence[Fields], described: Mapping[str, Any]
) -> tuple[Fields, tuple[str, ...]]:
    """The first of some fields that give the checkpoint's ids, and what a person should know of them.

    Args:
        folder: of the checkpoint, for messages.
        words: its tokenizer.
        candidates: fields of a GGUF's tokenizer.
        described: tokenizer.json.

    Raises:
        UserError: none give them; names the first text that is read otherwise.
    """
    special = [token["content"] for token in described["added_tokens"] if token["special"]]
    change = odd_texts.normal_form(described)
    failure = ""
    first_only = pieces.is_first_only(described)
    for fields in candidates:
        try:
            gguf_tokenizer.refuse_odd(folder, fields)
            read = gguf_tokenizer.tokenizer(folder, fields)
        except UserError as error:
            failure = failure or str(error)
            continue
        if text := _first_other(words, read, map(change, odd_texts.plain(special, first_only))):
            shown = read.encode(text).ids[:8], words.encode(text)[:8]
            failure = failure or f"{text[:40]!r} would be {shown[0]}… in llama.cpp, and is {shown[1]}…"
            continue
        return fields, _notes(words, read, special, change)
    raise UserError(
        f"{folder}: llama.cpp has no tokenizer for this one, of those that are known here: {failure}"
    )


def _notes(
    words: CheckpointTokenizer, read: Tokenizer, special: list[str], change: Callable[[str], str]
) -> tuple[str, ...]:
    """What a person should know of a tokenizer that is taken."""
    notes = []
    if change is not str:
        notes.append("texts are read as they are: put them into NFC for the model's own ids")
    if text := _first_other(words, read, map(change, odd_texts.rare(special))):
        notes.append(
            f"llama.cpp reads spaces at the beginning or around special tokens otherwise: {text!r:.60}"
        )
    return tuple(notes)


def _first_other(words: CheckpointTokenizer, read: Tokenizer, texts: Iterator[str]) -> str | None:
    """The first text of which the ids differ."""
    for text in texts:
        if any(
            read.encode(text, add_special_tokens=framed).ids != words.encode(text, framed)
            for framed in (True, False)
        ):
            return text
    return None
