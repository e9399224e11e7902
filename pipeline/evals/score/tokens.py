"""Windows of requests as tokens, made once per tokenizer by a process beside the model's, and kept on disk.

A window's file has each context once. Its name is the digest of the texts, the tokenizer and the protocol,
so that every variant and every later run finds it, and nothing in it can be out of date.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline import store
from pipeline.evals.score import kept_files
from pipeline.evals.score.words import TextPair, TokenizerLM, TokenPair
from pipeline.models import identity
from pipeline.store import arrays, processes
from pipeline.types import UserError

log = logging.getLogger(__name__)

FEW = 200_000
"""Characters below which starting a process takes longer than tokenising."""
AHEAD = 2
"""Windows that are tokenised while one is scored."""
FORMAT = 1
"""Of the files; part of their names."""

Int32s = npt.NDArray[np.int32]

_model: TokenizerLM | None = None
"""The tokenizer of the process beside."""


def windows(model: TokenizerLM, texts: list[list[TextPair]]) -> Iterator[list[TokenPair]]:
    """The tokens of each window in turn.

    Args:
        model: whose tokenizer is used.
        texts: the windows.
    """
    version = f"{identity.tokenizer_digest(model.folder)} {model.protocol} {FORMAT}"
    files = [_file(model.requests, version, window) for window in texts]
    missing = [number for number, file in enumerate(files) if not file.is_file()]
    size = sum(len(text) for number in missing for pair in texts[number] for text in pair)
    with _pool(model) if size > FEW else nullcontext() as pool:
        pending: dict[int, Future[None]] = {}
        for number, file in enumerate(files):
            for ahead in missing[: AHEAD + 1 - len(pending)] if pool else []:
                assert pool is not None
                with processes.without_interrupts():
                    pending[ahead] = pool.submit(_encode_beside, files[ahead], texts[ahead])
                missing.remove(ahead)
            if number in pending:
                pending.pop(number).result()
            elif not file.is_file():
                _write(model, file, texts[number])
            if (pairs := read_kept(file)) is None:
                _write(model, file, texts[number])
                pairs = read_kept(file)
            assert pairs is not None, "what was just written is read"
            yield pairs
    kept_files.sweep(model.requests, "*.npz")


def _file(folder: Path, version: str, window: list[TextPair]) -> Path:
    return folder / f"{store.text_digest(version + json.dumps(window))[:32]}.npz"


def _pool(model: TokenizerLM) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that other threads hold
    return ProcessPoolExecutor(1, context, _begin, (model.folder, model.protocol))


def _begin(folder: Path, protocol: str) -> None:
    """Prepares the process beside: it ends with its parent, however that ends."""
    global _model
    processes.end_with_parent()
    _model = TokenizerLM(folder, protocol)


def _encode_beside(file: Path, window: list[TextPair]) -> None:
    assert _model is not None
    _write(_model, file, window)


def _write(model: TokenizerLM, file: Path, window: list[TextPair]) -> None:
    pairs = model.encode_pairs(window)
    contexts = {tuple(context): None for context, _ in pairs}
    numbers = {context: number for number, context in enumerate(contexts)}
    continuations = [continuation for _, continuation in pairs]
    with store.atomic(file) as temporary, temporary.open("wb") as out:
        np.savez(
            out,
            contexts=_flat(contexts),
            context_lengths=_lengths(contexts),
            context_of=np.array([numbers[tuple(context)] for context, _ in pairs], np.int32),
            continuations=_flat(continuations),
            continuation_lengths=_lengths(continuations),
        )


def read_kept(file: Path) -> list[TokenPair] | None:
    """The tokens of a window that an earlier run kept; None where the file is damaged."""
    kept_files.used(file)
    try:
        kept = arrays.read_arrays(file)
        if not all(array.ndim == 1 and array.dtype == np.int32 for array in kept.values()):
            return None
        contexts = _sequences(kept["contexts"], kept["context_lengths"])
        continuations = _sequences(kept["continuations"], kept["continuation_lengths"])
        numbers = kept["context_of"].tolist()
        return [(contexts[k], continuation) for k, continuation in zip(numbers, continuations, strict=True)]
    except (UserError, KeyError, IndexError, ValueError) as error:
        log.warning("%s is damaged (%s); it is made again", file, error)
        return None


def _flat(sequences: Iterable[Sequence[int]]) -> Int32s:
    return np.array([token for sequence in sequences for token in sequence], np.int32)


def _lengths(sequences: Iterable[Sequence[int]]) -> Int32s:
    return np.array([len(sequence) for sequence in sequences], np.int32)


def _sequences(flat: Int32s, lengths: Int32s) -> list[list[int]]:
    """The inverse of `_flat` and `_lengths`."""
    ends = np.cumsum(lengths).tolist()
    whole = flat.tolist()
    return [whole[end - length : end] for end, length in zip(ends, lengths.tolist(), strict=True)]
