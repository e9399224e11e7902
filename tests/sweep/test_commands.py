"""Command lines: what a person would type, without options at their default."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.sweep import commands, recipe
from pipeline.sweep.jobs import Command, GridCell
from pipeline.types import SkipSet, Variant
from tests.grids import GRID, put

GRAPH = Path("graphs/m x/attn2.fp32.onnx")


def settings(tables: str = "") -> recipe.Recipe:
    return recipe.read(put(GRID.replace("{model}", "org/m x").partition("[score]")[0] + tables))


def words(command: Command) -> str:
    return " ".join(command)


def test_export_names_skip_set_adapter_and_precision() -> None:
    skip = SkipSet.parse("attn2")
    assert commands.export("demo", Variant("demo")) == ("pipeline", "export", "demo", "--skip", "base")
    healed = commands.export("m x", Variant("m x", skip, "fp16", "heal"))
    assert healed[2:] == ("m x", "--skip", "attn2", "--adapter", "heal", "--precision", "fp16")


def test_calibrate_and_select_name_their_text(workdir: Path) -> None:
    read = settings(
        '[calibrate]\nsamples = 2\ntexts = ["a b.txt"]\n[select]\ntokens = "mean"\ndataset = "c4:en"\n'
    )
    assert commands.calibrate("m", read.calibrate)[3:] == ("--samples", "2", "--texts", "a b.txt")
    select = words(commands.select("m", GridCell("mlp", 0.25, "angular"), read.select))
    assert select == "pipeline select m --kind mlp --frac 0.25 --select angular --tokens mean --json"
    select = words(commands.select("m", GridCell("mlp", 0.25, "greedy"), read.select))
    assert select == "pipeline select m --kind mlp --frac 0.25 --select greedy --dataset c4:en --json"


def test_select_names_the_samples_that_a_recipe_names(workdir: Path) -> None:
    """32 too: rules have defaults of their own, `evo` 8."""
    for tables, options in (("", ""), ("[select]\nsamples = 32\nseed = 3\n", " --seed 3 --samples 32")):
        select = words(commands.select("m", GridCell("mlp", 0.25, "evo"), settings(tables).select))
        assert select == f"pipeline select m --kind mlp --frac 0.25 --select evo{options} --json"


@pytest.mark.parametrize(
    ("tables", "options"),
    [
        ("", "--backend tensorrt-rtx --target sm80"),
        ('[build]\nbackend = "tensorrt"\n', "--backend tensorrt"),
        (
            '[build]\ntarget = "sm89"\nlength = [1, 8, 16]\n',
            "--backend tensorrt-rtx --target sm89 --length 1,8,16",
        ),
    ],
)
def test_build_names_its_target_and_its_ranges(workdir: Path, tables: str, options: str) -> None:
    command = commands.build(GRAPH, settings(tables).build)
    assert words(command[3:]) == options and command[2] == str(GRAPH)


def test_score_and_bench_name_what_the_recipe_says(workdir: Path) -> None:
    read = settings(
        '[score]\nlimit = 5\ndata = "rows"\nprotocol = "v1"\n[bench]\nsequences = 2\nthreads = 1\n'
    )
    score = words(commands.score(GRAPH, "smoke", read)[3:])
    assert score == "--tasks smoke --limit 5 --data rows --protocol v1"
    bench = words(commands.bench(GRAPH, read, decode=True)[3:])
    assert bench == "--sequences 2 --lengths 50,100 --threads 1 --decode"
    unchecked = read.model_copy(update={"stages": ("export", "score")})
    assert commands.score(GRAPH, "smoke", unchecked)[-1] == "--unchecked"
    assert commands.check(GRAPH) == ("pipeline", "check", str(GRAPH))


def test_heal_names_its_loss_and_its_targets(workdir: Path) -> None:
    assert words(commands.heal(GRAPH, settings().heal)[3:]) == "--steps 60"
    read = settings('[heal]\nloss = "kl"\ntargets = ["mlp", "attn"]\nlr = 1e-3\nsteps = 3\n')
    assert words(commands.heal(GRAPH, read.heal)[3:]) == "--steps 3 --lr 0.001 --kl --targets mlp,attn"


def test_compensate_names_its_form_and_what_is_not_default(workdir: Path) -> None:
    assert words(commands.compensate(GRAPH, "rank16", settings().compensate)[3:]) == "--with rank16 --no-time"
    read = settings('[compensate]\nforms = ["bias"]\nsamples = 9\nrefit = true\ntexts = ["a.txt"]\n')
    command = words(commands.compensate(GRAPH, "bias", read.compensate)[3:])
    assert command == "--with bias --samples 9 --refit --texts a.txt --no-time"


def test_evo_alone_is_given_its_own_options(workdir: Path) -> None:
    read = settings('[select]\nminutes = 2.5\nstart = "last"\ncompensated = true\ngenerations = 9\n').select
    line = words(commands.select("m", GridCell("mlp", 0.25, "evo"), read))
    assert line == (
        "pipeline select m --kind mlp --frac 0.25 --select evo --start last --minutes 2.5 --generations 9 "
        "--compensated --json"
    )
    other = words(commands.select("m", GridCell("mlp", 0.25, "cosine"), read))
    assert other == "pipeline select m --kind mlp --frac 0.25 --select cosine --json"
