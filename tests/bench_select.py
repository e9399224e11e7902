"""`make bench-select`: how far each rule's choice moves the model, on text that no rule has read.

Choices are made on the project's own text (or `--texts`). They are judged on C4's validation rows, by the KL
divergence from the whole model and the loss, nats a token at every fourth position, without and with the
linear maps of `compensate` in the place of what is gone. Rows are appended to `--out` as they are measured,
one line of JSON each; a run that was stopped goes on where it was, and `--table` prints what is there,
as Markdown (docs/notes.md).

`--speedups` asks for sets that save a time instead of a count: of attention or MLPs alone, and of both
(`any`), by the times of sublayers that `select` measures. What is compared there is predicted to take the
same time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from pipeline.calib import calibrate, latency_budget, selectors
from pipeline.calib.compensation import stand_ins
from pipeline.calib.compensation.moment_files import MomentsText
from pipeline.calib.evolution.divergences import Divergences
from pipeline.calib.evolution.options import EvoOptions
from pipeline.calib.evolution.space import Space
from pipeline.calib.selectors import ModelStatistics, Question
from pipeline.cli import timing
from pipeline.graphs import export
from pipeline.models import checkpoint, texts
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.reference import FAST, Reference
from pipeline.types import SkipSet, UserError, count_of
from tests import bench_select_tables
from tests.bench_select_tables import Cost, Row, rows

FRACTIONS = (0.10, 0.25, 0.33, 0.50)
SEEDS = range(5)
KEY = ("model", "texts", "kind", "fraction", "speedup", "rule")
"""What a row is of. texts: that the rule read and the maps were fitted on; a fraction, or else a speed-up."""
TIMED_TOKENS = 100
"""Of the prefill whose time is saved, as `select` times by default."""
PAIRED = ("kl", "kl_linear", "loss", "loss_linear")
"""What a row holds for each sequence, so that two rules can be compared sequence by sequence."""


class Judge:
    """Measures skip sets of one model.

    Args:
        model: the checkpoint.
        tokens: [N, T] that no rule has read.
        source: text that linear maps are fitted on.
        kinds: whose maps are fitted.
    """

    def __init__(
        self, model: Checkpoint, tokens: texts.Tokens, source: texts.TextInput, kinds: list[str]
    ) -> None:
        reference = Reference(model.folder, load=FAST)
        text = MomentsText.cut(model, source, selectors.COMPENSATION_SAMPLES, 256)
        self.plain = Divergences(reference, tokens)
        self.compensated = {
            kind: Divergences(
                reference,
                tokens,
                stand_ins.linear_maps(model, reference, "block" if kind == "any" else kind, text),
            )
            for kind in kinds
        }

    def row(self, kind: str, skip: SkipSet, is_mended: bool) -> Row:
        """Divergence and loss of each sequence, without and, if so, with linear maps."""
        judges = {"": self.plain} | ({"_linear": self.compensated[kind]} if is_mended else {})
        values = {f"kl{name}": judge.of(skip) for name, judge in judges.items()}
        values |= {f"loss{name}": judge.losses(skip) for name, judge in judges.items()}
        return {name: [round(float(value), 5) for value in each] for name, each in values.items()}


def choices(
    names: list[str], kind: str, count: int, layers: int, statistics: ModelStatistics, evo: EvoOptions
) -> Iterator[tuple[str, SkipSet, float]]:
    """(rule with its seed, skip set, processor seconds of the rule now); evo: how `evo` searches.

    `evo:compensated` searches with maps in place; `evo:greedy` starts at what another rule chooses.
    """
    # The number of sequences is greedy's; the others have their own.
    others = ModelStatistics(statistics.folder, statistics.text_input)
    for name in names:
        rule, _, form = name.partition(":")
        measured_on = statistics if "greedy" in (rule, form) else others
        options = EvoOptions()
        if rule == "evo":
            start = form if form in selectors.names() else None
            options = replace(evo, start=start, compensated=form == "compensated")
        for seed in SEEDS if name == "random" else (0,):
            started = time.process_time()
            try:
                skip = selectors.choose(rule, Question(kind, count, layers, measured_on, seed, options)).skip
            except UserError as error:
                print(f"{name}, {count} {kind}: {error}", file=sys.stderr)
                continue
            yield f"random {seed}" if name == "random" else name, skip, time.process_time() - started


def counted_cells(
    chosen: argparse.Namespace, statistics: ModelStatistics, layers: int, evo: EvoOptions
) -> Iterator[tuple[Cost, str, SkipSet, float]]:
    """The choices of every kind and fraction, as `choices`."""
    for kind in chosen.kinds.split(","):
        for fraction in map(float, chosen.fractions.split(",")):
            names, count = chosen.selectors.split(","), count_of(fraction, layers)
            for choice in choices(names, kind, count, layers, statistics, evo):
                yield Cost(kind, fraction, None), *choice


def timed_cells(
    chosen: argparse.Namespace, statistics: ModelStatistics, evo: EvoOptions
) -> Iterator[tuple[Cost, str, SkipSet, float]]:
    """The choices of every speed-up and kind; `cosine` by the integer programme, where `evo` begins."""
    model = checkpoint.resolve(chosen.model)
    times = timing.sublayer_times(export.export_base(model, "fp32"), TIMED_TOKENS)
    for speedup, kind in itertools.product(map(float, chosen.speedups.split(",")), chosen.kinds.split(",")):
        saved = times.whole * (1 - 1 / speedup)
        damage = latency_budget.candidates(kind, statistics.similarity)
        try:
            first = latency_budget.solve(damage, times, saved)
        except latency_budget.OutOfReach as error:
            print(f"{speedup:g}x of {kind}: {error}", file=sys.stderr)
            continue
        space = Space.by_time(kind, times, saved, export.num_layers(model.config))
        start = partial(space.completed, first, damage)
        for name in chosen.selectors.split(","):
            started = time.process_time()
            skip = first
            if name != "cosine":
                options = replace(evo, compensated=name == "evo:compensated")
                skip = SkipSet.parse(statistics.evolved(space, start, 0, options).best[0])
            yield Cost(kind, None, speedup), name, skip, time.process_time() - started


def measure(chosen: argparse.Namespace) -> None:
    """Appends the rows that `--out` lacks."""
    model = checkpoint.resolve(chosen.model)
    source, kinds = texts.TextInput(tuple(chosen.texts)), chosen.kinds.split(",")
    calibrate.calibrate(model.folder, source, calibrate.CalibrationSettings(64, 256))
    statistics = ModelStatistics(
        model.folder, source, samples=chosen.greedy_samples, length=chosen.greedy_length
    )
    layers = export.num_layers(model.config)
    tokens, _ = texts.cut(model.folder, texts.TextInput((chosen.held_out,)), chosen.length, chosen.samples)
    judge = Judge(model, tokens, source, kinds)
    evo = EvoOptions(minutes=chosen.evo_minutes, generations=chosen.evo_generations)
    read = "+".join(file.stem for file in chosen.texts) or "own"
    present = {tuple(row.get(name) for name in KEY) for row in rows(chosen.out)}
    if chosen.speedups:
        every = timed_cells(chosen, ModelStatistics(model.folder, source), evo)
    else:
        every = counted_cells(chosen, statistics, layers, evo)
    for cost, rule, skip, seconds in every:
        key = dict(zip(KEY, (model.model, read, *cost, rule), strict=True))
        if tuple(key.values()) in present:
            continue
        row = key | {"skip": skip.name, "seconds": round(seconds, 1)}
        row |= judge.row(cost.kind, skip, is_mended=not rule.startswith("random"))
        with chosen.out.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")


def main() -> int:
    """Measures what is missing, and prints the tables."""
    data = Path(os.environ.get("PIPELINE_TEST_DATA", "../shared/data"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--kinds", default="attn,mlp")
    parser.add_argument("--fractions", default=",".join(map(str, FRACTIONS)))
    parser.add_argument(
        "--speedups", help="instead of fractions: of sets that save a time; a kind is also any"
    )
    names = [name for name in selectors.names() if name != "published"]
    parser.add_argument("--selectors", default=",".join([*names, "evo:compensated"]))
    parser.add_argument("--evo-minutes", type=float, help="of each search by evo, at most")
    parser.add_argument("--evo-generations", type=int, default=10, help="of each search by evo, at most")
    parser.add_argument("--texts", type=Path, nargs="*", default=[], help="that rules read")
    parser.add_argument("--held-out", type=Path, default=data / "c4" / "validation.jsonl")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--greedy-samples", type=int, default=None, help="sequences that greedy measures on")
    parser.add_argument("--greedy-length", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path("bench-select.jsonl"))
    parser.add_argument("--table", action="store_true", help="measure nothing")
    chosen = parser.parse_args()
    if not chosen.table:
        measure(chosen)
    print(bench_select_tables.markdown(rows(chosen.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
