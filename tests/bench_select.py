"""`make bench-select`: the loss of every selector's choice on text that no rule has read, beside random ones.

Calibrated on the project's own text (or `--texts`). Measured on C4's validation rows: nats a token at every
second position.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from pipeline.calib import calibrate, selectors
from pipeline.calib.evolution.options import EvoOptions
from pipeline.calib.race import Race
from pipeline.calib.selectors import ModelStatistics, Question
from pipeline.graphs import export
from pipeline.models import checkpoint, texts
from pipeline.models.reference import Reference
from pipeline.types import BASE, SkipSet, UserError, count_of

FRACTIONS = (0.10, 0.25, 0.33)
SEEDS = range(3)


def sets(
    kind: str, count: int, layers: int, told: ModelStatistics, names: list[str], minutes: float
) -> dict[str, SkipSet]:
    """Selector (with its seed) → its skip set; `joint` at as many sublayers as the blocks have."""
    found = {}
    for name in names:
        for seed in SEEDS if name == "random" else (0,):
            number = 2 * count if name == "joint" and kind == "block" else count
            label = name if name != "random" else f"random {seed}"
            statistics, evo = told, EvoOptions()
            if name == "evo":  # with its own number of sequences
                statistics, evo = ModelStatistics(told.folder, told.text_input), EvoOptions(minutes=minutes)
            try:
                question = Question(kind, number, layers, statistics, seed, evo)
                found[label] = selectors.choose(name, question).skip
            except UserError:
                continue  # not a rule for this kind
    return found


def losses(
    folder: Path,
    told: ModelStatistics,
    held_out: texts.TextInput,
    samples: int,
    length: int,
    names: list[str],
    minutes: float,
) -> list[dict]:
    """One row for each (kind, fraction, selector)."""
    tokens, _ = texts.cut(folder, held_out, length, samples)
    race = Race(Reference(folder), "block", tokens)
    layers = export.num_layers(checkpoint.open_checkpoint(folder).config)
    base, known = float(np.mean(race.losses(BASE))), dict[str, float]()
    rows = [{"kind": "", "fraction": 0.0, "selector": "base", "skip": "base", "loss": base}]
    for kind in ("attn", "mlp", "block"):
        for fraction in FRACTIONS:
            found = sets(kind, count_of(fraction, layers), layers, told, names, minutes)
            for name, skip in found.items():
                if skip.name not in known:
                    known[skip.name] = float(np.mean(race.losses(skip)))
                rows.append(
                    {
                        "kind": kind,
                        "fraction": fraction,
                        "selector": name,
                        "skip": skip.name,
                        "loss": known[skip.name],
                    }
                )
    return rows


def table(rows: list[dict]) -> Table:
    """Selectors down, kinds and fractions across; the random control as its mean."""
    columns = list(dict.fromkeys((row["kind"], row["fraction"]) for row in rows if row["kind"]))
    made = Table(title=f"nats a token; base {rows[0]['loss']:.3f}")
    made.add_column("selector")
    for kind, fraction in columns:
        made.add_column(f"{kind} {fraction:.0%}", justify="right")
    for name in dict.fromkeys(row["selector"].split(" ")[0] for row in rows[1:]):
        cells = []
        for column in columns:
            mine = [
                r["loss"]
                for r in rows
                if r["selector"].split(" ")[0] == name and (r["kind"], r["fraction"]) == column
            ]
            cells.append(f"{np.mean(mine):.3f}" if mine else "")
        made.add_row(name, *cells)
    return made


def main() -> int:
    """Calibrates where needed, and prints the table."""
    data = Path(os.environ.get("PIPELINE_TEST_DATA", "../shared/data"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--texts", type=Path, nargs="*", default=[])
    parser.add_argument("--held-out", type=Path, default=data / "c4" / "validation.jsonl")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--greedy-samples", type=int, default=32, help="sequences that greedy measures on")
    parser.add_argument("--greedy-length", type=int, default=256)
    parser.add_argument("--evo-minutes", type=float, default=5.0, help="of each search by evo")
    parser.add_argument("--selectors", default=",".join(selectors.names()))
    chosen = parser.parse_args()
    found = checkpoint.resolve(chosen.model)
    source, started = texts.TextInput(tuple(chosen.texts)), time.monotonic()
    calibrate.calibrate(found.folder, source, calibrate.CalibrationSettings(64, 256))
    told = ModelStatistics(found.folder, source, samples=chosen.greedy_samples, length=chosen.greedy_length)
    rows = losses(
        found.folder,
        told,
        texts.TextInput((chosen.held_out,)),
        chosen.samples,
        chosen.length,
        chosen.selectors.split(","),
        chosen.evo_minutes,
    )
    print(json.dumps(rows))
    Console(width=140).print(table(rows))
    print(f"{time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
