"""Stage: texts → how alike the residual stream is along the model, calib/<model>/similarity.json and .npz.

A batch at a time goes through PyTorch, or through a graph with its stream exposed; only sums are kept, and they are written
to disk every few seconds, so that a run that was killed goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from pipeline import store
from pipeline.calib import similarity, streams
from pipeline.calib.similarity import Sums
from pipeline.models import checkpoint as checkpoints
from pipeline.models import texts
from pipeline.types import UserError

SAVED_EVERY = 5.0
"""Seconds between two checkpoints of the sums."""


def calibrate(
    folder: Path,
    source: texts.Source,
    *,
    samples: int = 256,
    length: int = 512,
    buckets: int = 4,
    graph: Path | None = None,
    graph_streams: Callable[[Path], streams.Streams] | None = None,
    force: bool = False,
) -> Path:
    """Writes calib/<model>/similarity.json, or finds it there.

    Args:
        folder: the checkpoint.
        source: what text.
        samples, length: N sequences of T tokens.
        buckets: position buckets, for "does deep attention matter more late in the context".
        graph: a base graph to run instead of PyTorch.
        graph_streams: gives the residual stream of that graph (`engines/taps.py`); calib knows no graphs.

    Raises:
        UserError: too little text, activations that are no numbers, or a runner that cannot show its stream.
    """
    if samples < 1 or length < 2 or not 1 <= buckets <= length:
        raise UserError(
            "--samples must be at least 1, --length at least 2 and --buckets between 1 and --length"
        )
    found = checkpoints.open_checkpoint(folder)
    tokens, told = texts.cut(folder, source, length, samples)
    record = {
        "what": "similarity", "model": found.model, "weights": similarity.identity(found),
        "runner": str(graph) if graph else "torch", "length": length,
        "buckets": buckets, "tokens": int(tokens.size), "texts": told, "wanted": samples,
    }  # fmt: skip
    done = similarity.paths(found.model)[0]
    if not force and done.is_file() and _same(store.read_json(done), record):
        return done
    with store.lock(done.parent):
        sums = _resume(found.model, record)
        stream = graph_streams(graph) if graph and graph_streams else streams.torch_streams(folder)
        _measure(sums, tokens, buckets, stream, lambda: _save(found.model, record, sums))
        path = similarity.write(found.model, record, sums)
        for file in _partial(found.model):
            file.unlink(missing_ok=True)
    return path


def _same(record: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(record.get(key) == value for key, value in wanted.items())


def _measure(
    sums: Sums,
    tokens: texts.Tokens,
    buckets: int,
    stream: Callable[[Any], tuple[Any, Any]],
    save: Callable[[], None],
) -> None:
    """Adds every sequence that is not in the sums yet."""
    saved = time.monotonic()
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"sequences of {tokens.shape[1]} tokens", total=len(tokens), completed=sums.count)
        for row in tokens[sums.count :]:
            sums.add(similarity.measure(*stream(row), buckets))
            bar.advance(task)
            if time.monotonic() > saved + SAVED_EVERY:
                save()
                saved = time.monotonic()


def _partial(model: str) -> tuple[Path, Path]:
    folder = store.calib_dir(model)
    return folder / "similarity.partial.json", folder / "similarity.partial.npz"


def _save(model: str, record: dict[str, Any], sums: Sums) -> None:
    """Arrays first: a sidecar always finds the sums that it counts."""
    json_path, npz_path = _partial(model)
    arrays = {f"total.{k}": v for k, v in sums.total.items()} | {
        f"squares.{k}": v for k, v in sums.squares.items()
    }
    with store.atomic(npz_path) as temporary, temporary.open("wb") as out:
        np.savez(out, count=np.array(sums.count), **arrays)  # type: ignore[arg-type]
    store.write_json(json_path, {**record, "arrays_sha256": store.sha256(npz_path)})


def _resume(model: str, record: dict[str, Any]) -> Sums:
    """The sums of a run that was stopped, if it was this very run; else empty ones."""
    json_path, npz_path = _partial(model)
    if not json_path.is_file() or not npz_path.is_file():
        return Sums()
    held = store.read_json(json_path)
    if not _same(held, record) or held.get("arrays_sha256") != store.sha256(npz_path):
        return Sums()
    with np.load(npz_path, allow_pickle=False) as arrays:
        parts = {
            kind: {n.split(".", 1)[1]: arrays[n] for n in arrays.files if n.startswith(kind)}
            for kind in ("total", "squares")
        }
        return Sums(int(arrays["count"]), parts["total"], parts["squares"])
