"""`make demo`: the main job on the real model, from a checkpoint to a table, with nothing but a CPU.

It calls the same stages as the commands and prints each command that would do the same.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline import (
    arguments,
    backends,
    bench,
    build,
    calibrate,
    chains,
    checkpoint,
    compare,
    costs,
    export,
    score,
    selectors,
    skip,
    store,
    texts,
)
from pipeline.generation.greedy import greedy
from pipeline.types import UserError

PROMPT = "The capital of France is"
SEQUENCES = 20
RULES = ("last", "cosine")
"""The papers' first rule, and the one that our measurements favour on this model (docs/notes.md)."""


def main() -> None:
    """Runs the demo; exit 1 where a check fails."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    started = time.monotonic()
    say = arguments.say
    say("$ pipeline export demo")
    found = checkpoint.resolve(store.DEMO)
    base = export.export_base(found, "fp32")
    layers = export.num_layers(found.config)
    say("$ pipeline calibrate demo --samples 32 --length 128")
    calibrate.calibrate(found.folder, texts.OWN, samples=32, length=128)
    told, rules = selectors.Statistics(found.folder), {base: ""}
    for kind in ("attn", "mlp", "block"):
        for rule in RULES:
            say(f"$ pipeline export demo --skip {kind} --frac 0.25 --select {rule}")
            graph = skip.cut(base, selectors.skip_set(kind, 0.25, None, None, rule, layers, told))
            rules[graph] = f"{rules[graph]}, {rule}" if graph in rules else rule
    graphs = list(rules)
    say("$ pipeline check")
    checks = [compare.check(graph) for graph in graphs]
    for check in checks:
        say(check.summary())
    engine = _engine(graphs[1])
    say(f"$ pipeline bench --sequences {SEQUENCES}")
    passed = [check.path for check in checks if check.passed]
    report = bench.bench(passed, sequences=SEQUENCES)
    say("$ pipeline score --tasks smoke,smoke-loss --together")
    scores = score.score(passed, ["smoke", "smoke-loss"], merged=chains.merged(passed, unchecked=False))
    Console(width=190).print(_table(rules, checks, report, scores, engine, found))
    for graph in graphs[:3]:
        say(f'$ pipeline generate {graph} "{PROMPT}"')
        print(f"{graph.name:<24} {_continuation(graph)!r}")
    say(f"{time.monotonic() - started:.0f} s; everything above lies in graphs/, engines/ and evals/; `pipeline list` shows it")
    if not all(check.passed for check in checks):
        sys.exit(1)


def _engine(graph: Path) -> Path | None:
    """The RTX engine of one variant, cut in fp16 first."""
    if importlib.util.find_spec("tensorrt_rtx_bindings") is None and importlib.util.find_spec("tensorrt_rtx") is None:
        arguments.say("no engine: TensorRT-RTX is not installed (pip install 'skip-pipeline[rtx]')")
        return None
    arguments.say(f"$ pipeline build-engine {graph} --target sm80")
    twin = chains.fp16_twin(graph)
    return build.build(twin, targets=("sm80",))


def _table(
    rules: dict[Path, str],
    checks: list[compare.Comparison],
    report: bench.Report,
    scores: list[score.Score],
    engine: Path | None,
    found: checkpoint.Checkpoint,
) -> Table:
    lengths = sorted({row.length for row in report.rows})
    made = Table(title=f"{found.model}, fp32, {report.conditions['device']}, {SEQUENCES} sequences, 1 token each")
    made.add_column("variant", no_wrap=True)
    made.add_column("chosen by")
    texts_of = {(one.artefact, one.benchmark): one.text() for one in scores}
    for heading in (
        "check",
        "M parameters",
        "KV B/token",
        *(f"ms at {n}" for n in lengths),
        *(f"saved % (ceiling), {n}" for n in lengths),
        "smoke %",
        "loss / log V",
    ):
        made.add_column(heading, justify="right")
    for (graph, rule), check in zip(rules.items(), checks, strict=True):
        variant = store.variant_of(store.read_sidecar(graph))
        mine = [row for row in report.rows if row.name.split(" ")[0] in (variant.name, f"{variant.name}.{variant.precision}")]
        made.add_row(
            variant.name,
            rule,
            "passed" if check.passed else "FAILED",
            f"{costs.parameters(found.config, variant.skip) / 1e6:.1f}",
            f"{costs.cache_bytes(found.config, variant.skip, variant.precision):,}",
            *(f"{row.p50:.1f}" for row in mine),
            *(f"{row.improvement:.1f} ({row.ceiling:.1f})" if variant.skip else "" for row in mine),
            *(texts_of.get((str(graph), name), "") for name in ("smoke", "smoke-loss")),
        )
    if engine is not None:
        figures = store.read_sidecar(engine)
        made.caption = (
            f"{engine}: {engine.stat().st_size / 1e6:.0f} MB, {figures['build']['num_layers']} layers; {figures['proven']}"
        )
    return made


def _continuation(graph: Path) -> str:
    folder = store.checkpoint_folder(graph)
    words = texts.tokenizer(folder)
    with backends.open_runner(graph) as runner:
        tokens = greedy(runner, words.encode(PROMPT), 16, texts.stop_tokens(folder))
    return PROMPT + str(words.decode(tokens, skip_special_tokens=True))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
