"""Stage: texts → how alike the residual stream is along the model, calib/<model>/similarity.json and .npz.

A sequence at a time goes through PyTorch, or through a graph whose stream is an output. Only sums are kept.
They are written to disk every few seconds, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import Progress

from pipeline import store
from pipeline.calib import measures, similarity, streams
from pipeline.calib.measures import Sums
from pipeline.models import texts
from pipeline.models.checkpoint import Checkpoint, open_checkpoint
from pipeline.store import arrays as files
from pipeline.store import records
from pipeline.store.records import SimilarityRecord, SimilarityRequest, SimilaritySums, TextSource
from pipeline.types import Provider, UserError

if TYPE_CHECKING:
    from pipeline.models.reference import Dtype

SAVED_EVERY = 5.0
"""Seconds between two writes of the sums."""


@dataclass(frozen=True, slots=True)
class CalibrationSettings:
    """How much is measured.

    Attributes:
        samples, length: N sequences of T tokens.
        buckets: position buckets, which show whether deep attention matters more late in the context.
        device: that the model runs on; what was measured on another is another result.
        precision: that PyTorch runs it in, fp32, fp16 or bf16; likewise. The statistics are in fp64.

    Raises:
        UserError: a number is out of range, or there is no such precision.
    """

    samples: int = 256
    length: int = 512
    buckets: int = 4
    device: Provider = "cpu"
    precision: Dtype = "fp32"

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "fp16", "bf16"):
            raise UserError(f"--precision is fp32, fp16 or bf16, not {self.precision!r:.40}")
        if self.samples < 1 or self.length < 2 or not 1 <= self.buckets <= self.length:
            raise UserError(
                "--samples must be at least 1, --length at least 2 and --buckets between 1 and --length"
            )


def calibrate(
    folder: Path,
    text_input: texts.TextInput,
    settings: CalibrationSettings,
    graph: Path | None = None,
    graph_streams: Callable[[Path], streams.Streams] | None = None,
    force: bool = False,
) -> Path:
    """Writes calib/<model>/similarity.json, or finds it there.

    Args:
        folder: the checkpoint.
        text_input: what text.
        settings: how much of it.
        graph: a base graph to run instead of PyTorch.
        graph_streams: gives the residual stream of that graph, on that device (`engines/taps.py`); calib
            knows no graphs.
        force: measure again what is there and matches.

    Raises:
        UserError: too little text, activations that are no numbers, or a runner that cannot show its stream.
    """
    checkpoint = open_checkpoint(folder)
    path = similarity.paths(checkpoint.calib)[0]
    tokens, source = texts.cut(folder, text_input, settings.length, settings.samples)
    source = source.replaced(origin=text_input.origin(path))
    request = _request(checkpoint, settings, _runner(graph, path, settings), source)
    if not force and records.read_same(SimilarityRecord, path, request):
        return path
    with store.lock(path.parent):
        store.sweep_temporaries(path.parent, path.stem)
        sums = _resume(path.parent, request)
        on_torch = partial(streams.torch_streams, folder, settings.device, settings.precision)
        stream = graph_streams(graph) if graph and graph_streams else on_torch()
        _measure(sums, tokens, settings.buckets, stream, lambda: _save(path.parent, request, sums))
        similarity.write(path.parent, request, sums)
        for file in _partial(path.parent):
            file.unlink(missing_ok=True)
    return path


def _runner(graph: Path | None, path: Path, settings: CalibrationSettings) -> str:
    """What ran the model, as the record in the file `path` names it.

    Raises:
        UserError: a graph is to run in another precision than its own.
    """
    where = " on cuda" if settings.device == "cuda" else ""
    if graph is None:
        return "torch" + (f" {settings.precision}" if settings.precision != "fp32" else "") + where
    if settings.precision != "fp32":
        raise UserError(f"--precision {settings.precision} is for --runner torch: a graph has its own")
    return store.relative(graph, to=path) + where


def _request(
    checkpoint: Checkpoint, settings: CalibrationSettings, runner: str, source: TextSource
) -> SimilarityRequest:
    return SimilarityRequest(
        model=checkpoint.model,
        weights=checkpoint.identity,
        contents=checkpoint.contents,
        runner=runner,
        length=settings.length,
        buckets=settings.buckets,
        tokens=settings.samples * settings.length,
        texts=source,
        wanted=settings.samples,
    )


def _measure(
    sums: Sums, tokens: texts.Tokens, buckets: int, stream: streams.Streams, save: Callable[[], None]
) -> None:
    """Adds every sequence that is not in the sums yet."""
    saved = time.monotonic()
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"sequences of {tokens.shape[1]} tokens", total=len(tokens), completed=sums.count)
        for row in tokens[sums.count :]:
            sums.add(measures.measure(*stream(row), buckets))
            bar.advance(task)
            if time.monotonic() > saved + SAVED_EVERY:
                save()
                saved = time.monotonic()


def _partial(folder: Path) -> tuple[Path, Path]:
    return folder / "similarity.partial.json", folder / "similarity.partial.npz"


def _save(folder: Path, request: SimilarityRequest, sums: Sums) -> None:
    """Writes the arrays first, so that a record always finds the sums that it counts."""
    json_path, npz_path = _partial(folder)
    arrays = {f"total.{name}": total for name, total in sums.total.items()}
    arrays |= {f"squares.{name}": squares for name, squares in sums.squares.items()}
    with store.atomic(npz_path) as temporary, temporary.open("wb") as out:
        np.savez(out, count=np.array(sums.count), **arrays)  # type: ignore[arg-type]
    record = SimilaritySums(**dict(request), arrays_sha256=store.sha256(npz_path))
    store.write_json(json_path, record.plain())


def _resume(folder: Path, request: SimilarityRequest) -> Sums:
    """The sums of a run that was stopped, if it was this very run; else empty ones."""
    json_path, npz_path = _partial(folder)
    record = records.read_same(SimilaritySums, json_path, request)
    if record is None or not npz_path.is_file() or record.arrays_sha256 != store.sha256(npz_path):
        return Sums()
    saved = files.read_arrays(npz_path)
    parts = {
        kind: {name.split(".", 1)[1]: array for name, array in saved.items() if name.startswith(kind)}
        for kind in ("total", "squares")
    }
    return Sums(int(saved["count"]), parts["total"], parts["squares"])
