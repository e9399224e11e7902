"""Windows of requests as tokens: made once per tokenizer by a process beside the model's, and kept on disk.

A window's file holds each context once. It is named by the digest of the texts, the tokenizer and the protocol, so that
every variant, and every later run, finds it; nothing in it can be stale.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import store
from pipeline.evals.score.words import Pair, TokenPair, Words
from pipeline.models import identity
from pipeline.store.processes import end_with_parent

FEW = 200_000
"""Characters below which starting a process takes longer than tokenising."""
AHEAD = 2
"""Windows that are tokenised while one is scored."""

_words: Words | None = None


def windows(words: Words, parts: list[list[Pair]]) -> Iterator[list[TokenPair]]:
    """The tokens of each window in turn."""
    version = f"{identity.tokenizer_digest(words.folder)} {words.protocol} 1"
    files = [_file(words.folder, version, part) for part in parts]
    missing = [number for number, file in enumerate(files) if not file.is_file()]
    size = sum(len(text) for number in missing for pair in parts[number] for text in pair)
    pool = _pool(words) if size > FEW else nullcontext()
    with pool as workers:
        pending: dict[int, Future[None]] = {}
        for number, file in enumerate(files):
            for ahead in missing[: AHEAD + 1 - len(pending)] if workers else []:
                assert workers is not None
                pending[ahead] = workers.submit(_encode_beside, files[ahead], parts[ahead])
                missing.remove(ahead)
            if number in pending:
                pending.pop(number).result()
            elif not file.is_file():
                _write(words, file, parts[number])
            yield _read(file)


def _file(folder: Path, version: str, part: list[Pair]) -> Path:
    return store.requests_dir(folder) / f"{store.text_digest(version + json.dumps(part))[:32]}.npz"


def _pool(words: Words) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")  # a fork would copy a process whose threads hold locks
    return ProcessPoolExecutor(1, context, _begin, (words.folder, words.protocol))


def _begin(folder: Path, protocol: str) -> None:
    """In the process beside: ends with its parent, however that ends, and leaves Ctrl-C to it."""
    global _words
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    _words = Words(folder, protocol)


def _encode_beside(file: Path, part: list[Pair]) -> None:
    assert _words is not None
    _write(_words, file, part)


def _write(words: Words, file: Path, part: list[Pair]) -> None:
    encoded = words.encode_pairs(part)
    contexts = {tuple(context): None for context, _ in encoded}
    numbers = {context: number for number, context in enumerate(contexts)}
    with store.atomic(file) as temporary, temporary.open("wb") as out:
        np.savez(
            out,
            contexts=_flat(contexts),
            context_lengths=_lengths(contexts),
            context_of=np.array([numbers[tuple(context)] for context, _ in encoded], np.int32),
            continuations=_flat(continuation for _, continuation in encoded),
            continuation_lengths=_lengths(continuation for _, continuation in encoded),
        )


def _read(file: Path) -> list[TokenPair]:
    with np.load(file, allow_pickle=False) as held:
        contexts = _pieces(held["contexts"], held["context_lengths"])
        continuations = _pieces(held["continuations"], held["continuation_lengths"])
        return [
            (contexts[k], continuation)
            for k, continuation in zip(held["context_of"], continuations, strict=True)
        ]


def _flat(parts: Any) -> Any:
    return np.array([token for part in parts for token in part], np.int32)


def _lengths(parts: Any) -> Any:
    return np.array([len(part) for part in parts], np.int32)


def _pieces(flat: Any, lengths: Any) -> list[list[int]]:
    ends = np.cumsum(lengths).tolist()
    whole = flat.tolist()
    return [whole[end - length : end] for end, length in zip(ends, lengths.tolist(), strict=True)]
