"""On SmolLM2: what the rules choose, on a small budget; and a healed variant from end to end."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline import store
from pipeline.calib import calibrate, heal, selectors, similarity
from pipeline.calib.evolution.options import EvoOptions
from pipeline.calib.race import Race
from pipeline.calib.selectors import ModelStatistics, Question
from pipeline.cli import prerequisites
from pipeline.evals.check import check
from pipeline.graphs import export, variants
from pipeline.models import checkpoint, texts
from pipeline.models.reference import Reference
from pipeline.store.records import AdapterRecord, HealSettings, read
from pipeline.types import BASE, SkipSet

pytestmark = pytest.mark.slow
LAYERS = 30
C4 = (Path(os.environ.get("PIPELINE_TEST_DATA", "../shared/data")) / "c4" / "validation.jsonl").resolve()


@pytest.fixture(scope="module")
def folder(demo_root: Path, tmp_path_factory: pytest.TempPathFactory):
    """A project of its own around the shared checkpoint, with statistics of 8 sequences."""
    root = tmp_path_factory.mktemp("learn")
    shutil.copytree(demo_root / "graphs", root / "graphs", copy_function=os.link)
    before = Path.cwd()
    os.chdir(root)
    try:
        demo = checkpoint.resolve("demo")
        calibrate.calibrate(demo.folder, texts.OWN, calibrate.CalibrationSettings(8, 128, 2))
        yield demo.folder
    finally:
        os.chdir(before)


def test_the_statistics_are_those_of_the_papers_shape(folder: Path) -> None:
    """Deep attention changes the stream less than shallow attention; the first layers change it most."""
    measured = similarity.of_checkpoint(folder)
    attn = measured.cosine("attn")
    assert attn[LAYERS // 2 :].mean() > attn[: LAYERS // 2].mean()
    d = measured.distances()
    best = min(range(LAYERS - 8 + 1), key=lambda first: d[first, first + 8])
    assert best > LAYERS // 3
    assert (measured.mean["cosine_attn"] > -1).all() and (measured.stderr["cosine_attn"] < 0.1).all()


def test_rules_on_text_that_nothing_was_calibrated_on(folder: Path) -> None:
    """Similarity beats chance on every kind, greedy beats similarity where both may choose three."""
    source = texts.TextInput((C4,)) if C4.is_file() else texts.OWN
    tokens, _ = texts.cut(folder, source, 128, 4, skip=60)
    statistics = ModelStatistics(folder, samples=4, length=64)
    race = Race(Reference(folder), "block", tokens)

    def loss(name: str, kind: str, count: int, seed: int = 0) -> float:
        return float(
            np.mean(race.losses(selectors.choose(name, Question(kind, count, LAYERS, statistics, seed)).skip))
        )

    base = float(np.mean(race.losses(BASE)))
    for kind, name in (("attn", "cosine"), ("mlp", "cosine"), ("block", "angular")):
        chance = np.mean([loss("random", kind, 8, seed) for seed in range(3)])
        chosen = loss(name, kind, 8)
        assert base < chosen < chance, (kind, name, base, chosen, chance)
    assert base - 0.05 < loss("greedy", "attn", 3) <= loss("cosine", "attn", 3) + 0.1


def test_a_search_mends_what_cosine_chooses(folder: Path) -> None:
    """MLPs, where similarity says least: three generations on 256 tokens, judged on other text."""
    tokens, _ = texts.cut(folder, texts.OWN, 128, 4, skip=60)
    race = Race(Reference(folder), "mlp", tokens)
    statistics = ModelStatistics(folder, samples=4, length=64)
    question = Question("mlp", 8, LAYERS, statistics, evo=EvoOptions(generations=3))
    choice = selectors.choose("evo", question)
    cosine = selectors.choose("cosine", replace(question, evo=EvoOptions()))
    searched, ranked = (float(np.mean(race.losses(one.skip))) for one in (choice, cosine))
    assert searched < ranked - 0.3
    assert len(choice.skip.mlp) == 8 and not choice.skip.attention
    assert [value for _, value in choice.runners_up] == sorted(value for _, value in choice.runners_up)


def test_a_healed_variant_from_end_to_end(folder: Path) -> None:
    base = export.export_base(checkpoint.open_checkpoint(folder))
    graph = variants.cut(base, SkipSet.parse("block20-25"))
    place = heal.heal(graph, HealSettings(steps=6, batch=2, length=64, rank=8, alpha=8, warmup=1, lr=1e-3))
    losses = read(AdapterRecord, place / "heal.json").held_out_loss
    assert losses.base < losses.after < losses.before
    healed = prerequisites.healed(graph, "heal")
    assert check.check(healed).passed
    weights = store.overlays(healed)[-1]
    assert (
        weights.stat().st_size < 0.6 * (folder / "model.safetensors").stat().st_size
        and healed.stat().st_size < 300_000
    )
