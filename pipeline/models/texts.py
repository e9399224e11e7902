"""Real English text, the same on every machine, and its tokens cut to exact lengths.

The project's own text is the documentation that every CPython carries (`pydoc_data.topics`, half a megabyte
of prose and examples). Its tokens are kept under calib/<model>/, named by the digests of text and tokenizer.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline import store
from pipeline.models import identity, json_lines, tokenizer
from pipeline.models.checkpoint import project_of
from pipeline.models.config import read_config
from pipeline.store import arrays
from pipeline.store.records import TextSource
from pipeline.types import UserError, first_line

log = logging.getLogger(__name__)

Tokens = npt.NDArray[np.int64]
WhenShort = Literal["refuse", "fewer", "repeat"]
"""What a text that is too short gives: an error, fewer pieces, or its pieces again, half a piece further."""
OWN_NAME = "English text of CPython's pydoc_data.topics"
FORMAT = 2
"""Of the kept tokens; part of their names."""
CHARACTERS = 8
"""Characters of a dataset that are read for each token that is wanted."""
_NO_TEXTS = (".csv", ".tsv", ".json", ".parquet", ".gz", ".zst", ".xz")
"""Suffixes of files whose form would be read as if it were prose."""


@cache
def text() -> str:
    """All topics in the order of their names, blank runs squeezed."""
    from pydoc_data.topics import topics

    return "\n\n".join(" ".join(topics[name].split()) for name in sorted(topics))


@dataclass(frozen=True, slots=True)
class TextInput:
    """What text is measured on: the project's own by default, files, or a dataset of the hub.

    Attributes:
        files: .txt, or .jsonl with a column `text`.
        dataset: 'allenai/c4:en:validation': name, configuration and split; streamed.
    """

    files: tuple[Path, ...] = ()
    dataset: str | None = None

    def read(self, enough: int) -> tuple[str, TextSource]:
        """The text, and where it came from.

        Args:
            enough: characters of a dataset after which reading stops.

        Raises:
            UserError: a file is missing, empty or no text; the dataset cannot be reached.
        """
        if self.files and self.dataset:
            raise UserError("--texts and --dataset exclude each other")
        if self.dataset:
            content = _stream_dataset(self.dataset, enough)
            digest = store.text_digest(content)
            return content, TextSource(origin=self.dataset, sha256=digest, characters=len(content))
        if self.files:
            content = "\n\n".join(_read_text(file) for file in self.files)
            names = tuple(str(file) for file in self.files)
            return content, TextSource(origin=names, sha256=store.text_digest(content))
        return text(), TextSource(origin=OWN_NAME, sha256=store.text_digest(text()))

    def origin(self, record: Path) -> str | tuple[str, ...]:
        """Where the text comes from, with paths relative to the file `record`, which is to say so."""
        if self.files:
            return tuple(store.relative(file, to=record) for file in self.files)
        return self.dataset or OWN_NAME


OWN = TextInput()
"""The project's own text."""


def cut(
    folder: Path,
    text_input: TextInput,
    length: int,
    count: int,
    skip: int = 0,
    when_short: WhenShort = "refuse",
) -> tuple[Tokens, TextSource]:
    """Consecutive pieces of a text as tokens, each with the BOS that the tokenizer puts before texts, if any.

    Args:
        folder: the checkpoint, whose tokenizer is used.
        text_input: the text.
        length: tokens of a piece.
        count: pieces.
        skip: pieces left out at the beginning, to stay clear of the text of another run.
        when_short: what a text gives that has fewer pieces than are wanted.

    Returns:
        [count, length] token ids, fewer rows with when_short='fewer'; and where the text came from.

    Raises:
        UserError: no tokenizer, no such text, or a text that is too short.
    """
    if length < 1 or count < 1:
        raise UserError(f"cannot cut {count} sequences of {length} tokens; both must be at least 1")
    if max(length, skip + count) > 10**9:
        raise UserError(f"cannot cut {count} sequences of {length} tokens; 10^9 of either at most")
    prefix, stream, source = _tokens(folder, text_input, (skip + count) * length * CHARACTERS)
    if len(prefix) >= length and when_short == "repeat":
        rows = np.tile(np.array(prefix[:length], np.int64), (count, 1))
    else:
        rows = _rows(prefix, stream, length, range(skip, skip + count), when_short)
        source = source.replaced(skipped=skip)
    return rows, source.replaced(ids=hashlib.sha256(rows.tobytes()).hexdigest())


def _rows(prefix: list[int], stream: Tokens, length: int, wanted: range, when_short: WhenShort) -> Tokens:
    """The wanted pieces of a stream of tokens, each behind the prefix: [len(wanted), length], or fewer."""
    body = length - len(prefix)
    pieces = len(stream) // max(1, body)
    if body < 1 or pieces < 1:
        raise UserError(
            f"the text has {len(stream)} tokens, and a sequence of {length} tokens needs more; "
            "give more --texts, or a shorter --length"
        )
    if pieces < wanted.stop and when_short == "refuse":
        raise UserError(
            f"the text fills {max(0, pieces - wanted.start)} sequences of {length} tokens, "
            f"not {len(wanted)}; give more --texts, fewer --samples or a shorter --length"
        )
    if when_short == "fewer":
        wanted = range(wanted.start, min(wanted.stop, pieces))
    rows = np.empty((len(wanted), length), np.int64)
    for row, number in enumerate(wanted):
        lap, piece = divmod(number, pieces)
        start = (piece * body + lap * (body // 2)) % (len(stream) - body + 1)
        rows[row] = [*prefix, *stream[start : start + body]]
    return rows


def sequences(folder: Path, length: int, count: int, seed: int = 0) -> tuple[Tokens, str]:
    """Sequences of any number: of the project's own text, or random ids for a model without a tokenizer.

    Args:
        folder: the checkpoint.
        length: tokens of a sequence.
        count: sequences.
        seed: of random ids.

    Returns:
        [count, length] token ids, and in words where they are from.

    Raises:
        UserError: a length that the whole text does not fill.
    """
    if _is_usable(folder, identity.tokenizer_digest(folder)):
        return cut(folder, OWN, length, count, when_short="repeat")[0], OWN_NAME
    vocabulary = read_config(folder)["vocab_size"]
    tokens = np.random.default_rng(seed).integers(0, vocabulary, (count, length), np.int64)
    return tokens, f"random ids (seed {seed}): the model has no tokenizer"


@cache
def _is_usable(folder: Path, digest: str | None) -> bool:  # noqa: ARG001 - a changed tokenizer is looked at anew
    """Whether a tokenizer can be used, asked once: a check asks often, and its kept tokens need no tokenizer.

    `export` has said what is wrong with one that cannot.
    """
    try:
        tokenizer.load(folder)
    except UserError:
        return False
    return True


def _read_text(file: Path) -> str:
    if not file.is_file():
        raise UserError(f"{file} does not exist")
    if file.suffix in _NO_TEXTS:
        raise UserError(f"{file} is no text; give .txt, or .jsonl with a column 'text'")
    if file.suffix == ".jsonl":
        content = "\n\n".join(_column(file, line, row) for line, row in json_lines.read(file))
    else:
        content = json_lines.read_text(file)
    if not content.strip():
        raise UserError(f"{file} holds no text")
    return content


def _column(file: Path, line: int, row: json_lines.Row) -> str:
    if not isinstance(content := row.get("text"), str):
        raise UserError(f"{file}, line {line}: no JSON object with a 'text'")
    return content


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
            if not isinstance(content := row["text"], str):
                raise UserError(f"{name}: the 'text' of its row {len(parts) + 1} is no text")
            parts.append(content)
            size += len(parts[-1])
            if size > enough:
                break
    except (OSError, datasets.exceptions.DatasetsError, ConnectionError, ValueError, KeyError) as error:
        reason = first_line(error, 200)
        raise UserError(f"cannot stream {name} from the hub ({reason}); give local --texts") from None
    return "\n\n".join(parts)


def _tokens(folder: Path, text_input: TextInput, enough: int) -> tuple[list[int], Tokens, TextSource]:
    """What the tokenizer puts before a text (a BOS, or nothing), the text's tokens [N], and its source."""
    content, source = text_input.read(enough)
    if text_input != OWN:
        return *_tokenized(folder, content), source
    digest = store.text_digest(f"{source.sha256} {identity.tokenizer_digest(folder)} {FORMAT}")
    kept = project_of(folder).calib(folder.resolve().name) / f"text-{digest[:16]}.npy"
    if (tokens := read_kept(kept)) is not None:
        return *tokens, source
    prefix, stream = _tokenized(folder, content)
    with store.atomic(kept) as temporary, temporary.open("wb") as out:
        np.save(out, np.concatenate([[len(prefix)], prefix, stream]).astype(np.int64))
    return prefix, stream, source


def read_kept(file: Path) -> tuple[list[int], Tokens] | None:
    """(what stands before every text, the tokens [N]) as an earlier run kept them; None where it did not."""
    if not file.is_file():
        return None
    try:
        numbers = arrays.read_array(file)
    except UserError as error:
        log.warning("%s; it is made again", error)
        return None
    if (
        numbers.ndim != 1
        or numbers.dtype != np.int64
        or not (len(numbers) > numbers[:1].sum() >= 0 <= numbers.min(initial=0))
    ):
        log.warning("%s holds no tokens; it is made again", file)
        return None
    first = 1 + numbers[0]
    return numbers[1:first].tolist(), numbers[first:]


def _tokenized(folder: Path, content: str) -> tuple[list[int], Tokens]:
    words = tokenizer.load(folder)
    stream = np.array(words.encode(content, add_special_tokens=False), np.int64)
    rows = tokenizer.rows(folder)
    last = max([*words.prefix, int(stream.max(initial=0))])
    if rows is not None and last >= rows:
        raise UserError(
            f"{folder}: the text has token {words.backend.id_to_token(last)!r}, whose id {last} is beyond "
            f"the {rows} rows of the model's embedding; add rows to the model (resize_token_embeddings)"
        )
    return words.prefix, stream
