"""`make bench-compensate`: what compensation wins back, as loss on C4 rows that nothing was fitted on.

For each kind, fraction and rule: nats a token without the sublayers, and with each form in their place,
fitted on several draws of C4 (48 sequences of 256 tokens each by default). All draws are judged by the same
rows. Of the first draw alone: refits, and with `--lora 60` adapters, trained on the cut model and on top of
its linear maps.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from pipeline.calib import calibrate, selectors, training
from pipeline.calib.compensation import plan
from pipeline.calib.compensation.moment_files import HELD_OUT, MomentsText
from pipeline.calib.compensation.overlay import Overlay
from pipeline.calib.compensation.workbench import Workbench
from pipeline.calib.healer import Healer
from pipeline.calib.selectors import ModelStatistics, Question
from pipeline.graphs import export
from pipeline.models import checkpoint, texts
from pipeline.models.checkpoint import Checkpoint
from pipeline.store.records import HealSettings
from pipeline.types import BASE, SkipSet, UserError, count_of

Row = dict[str, Any]
REFIT = "+refit"
FORMS = ("bias", "rank16", "rank64", "linear", f"linear{REFIT}", "fold", f"fold{REFIT}")
KINDS = ("attn", "mlp", "block")


def sets(model: Checkpoint, chosen: argparse.Namespace) -> Iterator[tuple[Row, SkipSet]]:
    """Each kind, fraction and rule, with what it leaves out."""
    layers = export.num_layers(model.config)
    statistics = ModelStatistics(model.folder)
    for kind in chosen.kinds.split(","):
        for fraction in chosen.fractions:
            for rule in chosen.rules.split(","):
                question = Question(kind, count_of(fraction, layers), layers, statistics, 0)
                skip = selectors.choose(rule, question).skip
                yield {"kind": kind, "fraction": fraction, "rule": rule, "skip": skip.name}, skip


def draws(model: Checkpoint, file: Path, count: int, samples: int, length: int) -> list[MomentsText]:
    """Disjoint pieces of a file to fit on, and the same pieces beyond them to judge by."""
    text = texts.TextInput((file,))
    judged, _ = texts.cut(model.folder, text, length, HELD_OUT, skip=count * samples)
    pieces = (texts.cut(model.folder, text, length, samples, skip=draw * samples) for draw in range(count))
    return [MomentsText(fitted, judged, text, source) for fitted, source in pieces]


def losses(bench: Workbench, forms: list[str], steps: int) -> Iterator[tuple[str, float]]:
    """Form → loss; a form that is not possible there is left out. Adapters after `steps`, if any."""
    for form in forms:
        try:
            name = form.removesuffix(REFIT)
            made = bench.plan(form) if name == form else bench.refitted(name)
            yield form, bench.reported(made.overlay)
        except UserError as error:
            print(f"{bench.skip.name}, {form}: {error}", file=sys.stderr)
    if steps:
        yield f"lora{steps}", healed(bench, None, steps)
        yield f"linear+lora{steps}", healed(bench, bench.plan("linear").overlay, steps)


def healed(bench: Workbench, overlay: Overlay | None, steps: int) -> float:
    """The loss after LoRA, as `pipeline heal` trains it, on the text that the maps were fitted on."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "maps.safetensors"
        if overlay:
            overlay.write(file)
        settings = HealSettings(steps=steps)
        healer = Healer(bench.checkpoint.folder, bench.skip, settings, file if overlay else None)
        training.train(healer, bench.text.fitted, Path(folder) / "training")
        return healer.mean_loss(bench.text.held_out)


def study(model: Checkpoint, chosen: argparse.Namespace) -> list[Row]:
    """One row for each set, draw and form."""
    rows: list[Row] = []
    pieces = draws(model, chosen.texts, chosen.draws, chosen.samples, chosen.length)
    bare: dict[str, float] = {}
    wanted = list(sets(model, chosen))
    for draw, text in enumerate(pieces):
        first = Workbench(model, BASE, text)
        every = {place for _, skip in wanted for place in (*plan.single_places(skip), *plan.run_places(skip))}
        first.moments.make(every)  # in one pass
        for row, skip in wanted:
            bench = Workbench(model, skip, text)
            vars(bench)["reference"] = first.reference  # loaded once
            if not bare:
                bare["base"] = bench.reported(Overlay(BASE))
                print(json.dumps({"skip": "base", "loss": bare["base"]}), flush=True)
            if skip.name not in bare:
                bare[skip.name] = bench.reported(Overlay(skip))
            if not draw:
                rows.append({**row, "form": "none", "draw": 0, "loss": bare[skip.name]})
                print(json.dumps(rows[-1]), flush=True)
            forms = [form for form in chosen.forms.split(",") if not (draw and form.endswith(REFIT))]
            for form, loss in losses(bench, forms, 0 if draw else chosen.lora):
                rows.append({**row, "form": form, "draw": draw, "loss": loss})
                print(json.dumps(rows[-1]), flush=True)
    return [{"kind": "", "skip": "base", "form": "none", "draw": 0, "loss": bare["base"]}, *rows]


def table(rows: list[Row]) -> Table:
    """Sets down, forms across: mean over the draws, and their standard deviation."""
    forms = list(dict.fromkeys(row["form"] for row in rows))
    made = Table(title=f"nats a token; base {rows[0]['loss']:.3f}")
    for name in ("skip", "rule", *forms):
        made.add_column(name, justify="left" if name in ("skip", "rule") else "right")
    for skip, rule in dict.fromkeys((row["skip"], row["rule"]) for row in rows[1:]):
        cells = []
        for form in forms:
            own = [r["loss"] for r in rows[1:] if (r["skip"], r["rule"], r["form"]) == (skip, rule, form)]
            spread = f" ±{np.std(own, ddof=1):.3f}" if len(own) > 1 else ""
            cells.append(f"{np.mean(own):.3f}{spread}" if own else "")
        made.add_row(skip, rule, *cells)
    return made


def main() -> int:
    """Calibrates where needed, and prints the rows and the table."""
    data = Path(os.environ.get("PIPELINE_TEST_DATA", "../shared/data"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--texts", type=Path, default=data / "c4" / "validation.jsonl")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--fractions", type=float, nargs="*", default=[0.25, 0.33])
    parser.add_argument("--rules", default="cosine,last")
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--lora", type=int, default=0, help="steps; minutes a set")
    chosen = parser.parse_args()
    model, started = checkpoint.resolve(chosen.model), time.monotonic()
    calibrate.calibrate(model.folder, texts.OWN, calibrate.CalibrationSettings(64, 256))
    rows = study(model, chosen)
    print(json.dumps(rows))
    Console(width=140).print(table(rows))
    print(f"{time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
