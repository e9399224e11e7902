"""Real English text, the same on every machine, and its tokens cut to exact lengths.

The text is the documentation that every CPython carries (`pydoc_data.topics`, half a megabyte of prose and examples).
Its token sequences are cached under calib/<model>/ with the digests of text and tokenizer, so that none is stale.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import store
from pipeline.types import UserError

Tokens = npt.NDArray[np.int64]


@cache
def text() -> str:
    """All topics in the order of their names, blank runs squeezed."""
    from pydoc_data.topics import topics

    return "\n\n".join(" ".join(topics[name].split()) for name in sorted(topics))


def tokenizer(folder: Path) -> Any:
    """The model's tokenizer, as its authors published it.

    Raises:
        UserError: the folder holds none.
    """
    from transformers import AutoTokenizer

    if not any(folder.glob("tokenizer*")) and not (folder / "vocab.json").is_file():
        raise UserError(f"{folder} holds no tokenizer; copy the model's tokenizer files into it")
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} holds no tokenizer that transformers can load ({str(error).splitlines()[0]})") from None


def sequences(folder: Path, length: int, count: int, seed: int = 0) -> tuple[Tokens, str]:
    """([count, length] token ids, where they are from): `token_sequences`, or random ids for a model without a tokenizer."""
    if any(folder.glob("tokenizer*")):
        return token_sequences(folder, length, count), "English text of CPython's pydoc_data.topics"
    vocabulary = store.read_json(folder / "config.json")["vocab_size"]
    tokens = np.random.default_rng(seed).integers(0, vocabulary, (count, length), np.int64)
    return tokens, f"random ids (seed {seed}): the model has no tokenizer"


def token_sequences(folder: Path, length: int, count: int) -> Tokens:
    """[count, length] token ids: consecutive pieces of the text, each begun as the tokenizer begins a text.

    The pieces do not overlap while the text lasts; after that they start again, half a piece further.

    Raises:
        UserError: no tokenizer, or a length that the whole text does not fill.
    """
    prefix, stream = _stream(folder)
    body = length - len(prefix)
    if length < 1 or count < 1 or body > len(stream):
        raise UserError(f"cannot cut {count} sequences of {length} tokens: the text has {len(stream)} tokens")
    if body < 1:
        return np.tile(np.array(prefix[:length], np.int64), (count, 1))
    pieces = len(stream) // body
    rows = np.empty((count, length), np.int64)
    for k in range(count):
        lap, piece = divmod(k, pieces)
        start = (piece * body + lap * (body // 2)) % (len(stream) - body + 1)
        rows[k] = [*prefix, *stream[start : start + body]]
    return rows


def _stream(folder: Path) -> tuple[list[int], Tokens]:
    """What the tokenizer puts before a text (a BOS, or nothing), and the text's tokens, cached."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        file = next(iter(sorted(folder.glob("tokenizer*"))), folder / "tokenizer.json")
    if not file.is_file():
        raise UserError(f"{folder} holds no tokenizer")
    digest = store.text_digest(store.text_digest(text()) + store.sha256(file))
    cached = store.calib_dir(folder.resolve().name) / f"text-{digest[:16]}.npy"
    if cached.is_file():
        both = np.load(cached, allow_pickle=False)
        return both[1 : 1 + both[0]].tolist(), both[1 + both[0] :]
    words = tokenizer(folder)
    prefix = words("").input_ids
    stream = np.array(words(text(), add_special_tokens=False, verbose=False).input_ids, np.int64)
    with store.atomic(cached) as temporary, temporary.open("wb") as out:
        np.save(out, np.concatenate([[len(prefix)], prefix, stream]).astype(np.int64))
    return prefix, stream
