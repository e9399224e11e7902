"""Calibrating and healing a tiny model, for the tests of calib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.calib import adapters, calibrate, heal, similarity
from pipeline.cli import prerequisites
from pipeline.graphs import variants
from pipeline.models import texts
from pipeline.store.records import AdapterRecord, HealSettings, read
from pipeline.types import SkipSet

LAYERS, SAMPLES, LENGTH, BUCKETS = 4, 6, 24, 3
SMALL = {"steps": 12, "batch": 4, "length": 32, "rank": 8, "alpha": 8, "lr": 3e-3, "warmup": 1}


def measured(folder: Path, **options: Any) -> similarity.Similarity:
    """The statistics of a checkpoint; settings and arguments of `calibrate` by name."""
    numbers: dict[str, Any] = {"samples": SAMPLES, "length": LENGTH, "buckets": BUCKETS, "precision": "fp32"}
    settings = calibrate.CalibrationSettings(**{name: options.pop(name, n) for name, n in numbers.items()})
    calibrate.calibrate(folder, options.pop("text_input", texts.OWN), settings, **options)
    return similarity.of_checkpoint(folder)


def variant(base: Path, name: str = "block2") -> Path:
    """A graph cut from the base."""
    return variants.cut(base, SkipSet.parse(name))


def record(place: Path) -> AdapterRecord:
    """The record of an adapter."""
    return read(AdapterRecord, place / adapters.RECORD)


def healed(base: Path, name: str = "block2", **settings: Any) -> Path:
    """The graph of a variant with an adapter merged in."""
    graph = variant(base, name)
    heal.heal(graph, HealSettings(**{**SMALL, **settings}))
    return prerequisites.healed(graph, "heal")
