"""Real English text, the same on every machine, and its tokens cut to exact lengths.

The text is the documentation that every CPython carries (`pydoc_data.topics`, half a megabyte of prose and examples).
Its token sequences are cached under calib/<model>/ with the digests of text and tokenizer, so that none is stale.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import store
from pipeline.models import tokenizer
from pipeline.types import UserError

Tokens = npt.NDArray[np.int64]


@cache
def text() -> str:
    """All topics in the order of their names, blank runs squeezed."""
    from pydoc_data.topics import topics

    return "\n\n".join(" ".join(topics[name].split()) for name in sorted(topics))


@dataclass(frozen=True, slots=True)
class Source:
    """What text is measured on: the project's own by default, files, or a dataset of the hub.

    Attributes:
        files: .txt, or .jsonl with a column `text`.
        dataset: 'allenai/c4:en:validation': name, configuration and split; streamed.
    """

    files: tuple[Path, ...] = ()
    dataset: str | None = None

    def read(self, enough: int) -> tuple[str, dict[str, Any]]:
        """(the text, where it came from). A dataset is read until `enough` characters are there.

        Raises:
            UserError: a file is missing, empty or no text; the dataset cannot be reached.
        """
        if self.files and self.dataset:
            raise UserError("--texts and --dataset exclude each other")
        if self.dataset:
            held = _stream_dataset(self.dataset, enough)
            return held, {"from": self.dataset, "characters": len(held), "sha256": store.text_digest(held)}
        if self.files:
            held = "\n\n".join(_read_text(file) for file in self.files)
            return held, {"from": [str(file) for file in self.files], "sha256": store.text_digest(held)}
        return text(), {
            "from": "English text of CPython's pydoc_data.topics",
            "sha256": store.text_digest(text()),
        }


OWN = Source()
"""The project's own text."""


def cut(
    folder: Path, source: Source, length: int, count: int, skip: int = 0, at_most: bool = False
) -> tuple[Tokens, dict[str, Any]]:
    """([count, length] token ids, where they are from): consecutive pieces of the text that do not overlap.

    Args:
        skip: pieces left out at the beginning, so that another run's text is not met again.
        at_most: fewer pieces will do, where the text has no more.

    Raises:
        UserError: the text is too short.
    """
    words = tokenizer.load(folder)
    held, told = source.read((skip + count) * length * 8)
    prefix = words("").input_ids
    stream = words(held, add_special_tokens=False, verbose=False).input_ids
    body = length - len(prefix)
    pieces = len(stream) // max(1, body)
    if body < 1 or pieces < 1:
        raise UserError(
            f"the text has {len(stream)} tokens, and --length {length} needs more; give more --texts, or a shorter --length"
        )
    if pieces < skip + count and not at_most:
        raise UserError(
            f"the text fills {max(0, pieces - skip)} sequences of {length} tokens, not {count}; "
            "give more --texts, fewer --samples or a shorter --length"
        )
    rows = [[*prefix, *stream[k * body : (k + 1) * body]] for k in range(skip, min(skip + count, pieces))]
    return np.array(rows, np.int64).reshape(-1, length), {**told, "skipped": skip}


def _read_text(file: Path) -> str:
    if not file.is_file():
        raise UserError(f"{file} does not exist")
    try:
        held = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no UTF-8 text ({error.reason} at byte {error.start})") from None
    if file.suffix == ".jsonl":
        held = "\n\n".join(
            _column(file, number, line) for number, line in enumerate(held.split("\n"), 1) if line.strip()
        )
    if not held.strip():
        raise UserError(f"{file} holds no text")
    return held


def _column(file: Path, number: int, line: str) -> str:
    try:
        return str(json.loads(line)["text"])
    except (json.JSONDecodeError, KeyError, TypeError):
        raise UserError(f"{file}, line {number}: no JSON object with a 'text'") from None


def _stream_dataset(name: str, enough: int) -> str:
    """Documents of a dataset of the hub, until there are enough characters."""
    import datasets

    path, _, rest = name.partition(":")
    configuration, _, split = rest.partition(":")
    parts, size = list[str](), 0
    try:
        for row in datasets.load_dataset(
            path, configuration or None, split=split or "validation", streaming=True
        ):
            parts.append(str(row["text"]))
            size += len(parts[-1])
            if size > enough:
                break
    except (OSError, datasets.exceptions.DatasetsError, ConnectionError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UserError(f"cannot stream {name} from the hub ({reason}); give local --texts") from None
    return "\n\n".join(parts)


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
    words = tokenizer.load(folder)
    prefix = words("").input_ids
    stream = np.array(words(text(), add_special_tokens=False, verbose=False).input_ids, np.int64)
    with store.atomic(cached) as temporary, temporary.open("wb") as out:
        np.save(out, np.concatenate([[len(prefix)], prefix, stream]).astype(np.int64))
    return prefix, stream
