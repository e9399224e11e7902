"""What the tables of a recipe say, and what they say where they are left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.sweep import plan, recipe, sweep
from pipeline.types import UserError
from tests.grids import put, refused


def test_a_recipe_is_read_with_its_defaults(workdir: Path) -> None:
    text = 'models = ["org/m x", { name = "demo", layers = 30 }]\nkinds = ["attn"]\nfractions = [0.25]\n'
    settings = recipe.read(
        put(text + 'selectors = ["last"]\ntasks = ["arc", "mmlu"]\n[score]\nlimits.arc = 7\n')
    )
    assert [model.folder for model in settings.models] == ["m x", "SmolLM2-135M-Instruct"]
    assert settings.models[1].layers == 30 and settings.precisions == ("fp32",) and not settings.unchecked
    assert [settings.score.limit_of(task) for task in settings.tasks] == [7, None]
    assert settings.bench.lengths == (50, 100) and settings.heal.lr == 3e-4


def test_forms_of_a_compensation_are_a_list_or_a_table(workdir: Path) -> None:
    grid = (
        'models = ["demo"]\nkinds = ["mlp"]\nfractions = [0.25]\nselectors = ["last"]\nstages = ["export"]\n'
    )
    for text in ('compensate = ["linear", "fold+rank16"]', '[compensate]\nforms = ["linear", "fold+rank16"]'):
        read = recipe.read(put(grid + text)).compensate
        assert read.forms == ("linear", "fold+rank16") and (read.samples, read.length) == (48, 256)
    assert recipe.read(put(grid)).compensate.forms == ()
    for text, message in (
        ('compensate = ["linaer"]', "compensate: 'linaer' is no form; take bias"),
        ('compensate = ["auto"]', "compensate: 'auto' is no form"),
        ('compensate = ["bias", "bias"]', "compensate names bias twice"),
        ('compensate = "linear"', "compensate"),
        ("[compensate]\nsample = 3", "did you mean samples"),
    ):
        with pytest.raises(UserError, match=message):
            recipe.read(put(grid + text))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("fractions = [nan]", "fractions.0"),
        ("fractions = [inf]", "fractions.0"),
        ("fractions = [0]", "greater than 0"),
        ("fractions = [-0.1]", "greater than 0"),
        ("fractions = [1.0001]", "less than or equal to 1"),
        ("fractions = [true]", "fractions.0"),
        ('fractions = ["0.1"]', "fractions.0"),
        ("fractions = [0.1, 0.1]", "fractions names 0.1 twice"),
        ("fractions = [0.1, 0.10000001]", "fractions names 0.1 twice"),
        ('kinds = ["mlp", "mlp"]', "kinds names mlp twice"),
        ('kinds = ["mlp", "odd"]', "kinds.1"),
        ('selectors = ["last", "last"]', "selectors names last twice"),
        ('selectors = ["../last"]', "no name"),
        ('models = ["-rf"]', "no text that can stand in a command"),
        ('models = [""]', "no text that can stand in a command"),
        ('models = ["a\\u0000b"]', "no text that can stand in a command"),
        ("models = []", "models"),
        ("models = [1]", "models.0"),
        ('\n[[models]]\nname = "m"\nlayers = 10001', "models.0.layers"),
        ('\n[[models]]\nname = "m"\nlayers = 1' + "0" * 400, "an integer is beyond 64 bits"),
        ('\n[[models]]\nname = "m"\nparameters = 1' + "0" * 40, "an integer is beyond 64 bits"),
        ('stages = ["export", "export"]', "stages names export twice"),
        ('tasks = ["../../etc/passwd"]', "no name"),
        (
            'tasks = ["arc", "no-such-task-at-all"]\nstages = ["export", "score"]',
            "no task 'no-such-task-at-all'",
        ),
        ("[calibrate]\nsamples = 0", "calibrate.samples"),
        ("[calibrate]\nsamples = true", "calibrate.samples"),
        ("[calibrate]\nsamples = 1.5", "calibrate.samples"),
        ("[calibrate]\nlength = 10000000000", "calibrate.length"),
        ('[calibrate]\ndataset = "-x"', "no text"),
        ('[calibrate]\ntexts = ["a\\u0000"]', "no text"),
        ("[select]\nseed = -1", "select.seed"),
        ("[build]\nlength = [8, 4, 16]", "no minimum, optimum and maximum"),
        ("[build]\nbatch = [0, 0, 0]", "no minimum, optimum and maximum"),
        ("[build]\nbatch = [-1, 1, 1]", "build.batch.0"),
        ('[build]\ntarget = "../sm80"', "no name"),
        ("[bench]\nlengths = []", "bench.lengths"),
        ("[bench]\nthreads = 100000", "bench.threads"),
        ("[heal]\nlr = inf", "heal.lr"),
        ("[heal]\nlr = 0", "heal.lr"),
        ('[heal]\nname = "../../x"', "no name"),
        ('[heal]\nname = "a~b"', "no name"),
        ('[heal]\nname = ".x"', "no name"),
        ('[heal]\ntargets = ["/x"]', "no name"),
        ('[ship]\nto = ["gguf"]\ntype = "../q4"', "no name"),
    ],
)
def test_all_that_a_recipe_says_is_looked_at(workdir: Path, change: str, words: str) -> None:
    top = "" if "models" in change else 'models = ["demo"]\n'
    refused(top + change, words)


def test_a_plan_of_more_than_100_000_jobs_is_refused_before_it_is_made(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "make", lambda *_: pytest.fail("it was planned"))
    fractions = ", ".join(f"0.{n:05}" for n in range(1, 60_001))
    text = 'models = ["m"]\nkinds = ["mlp"]\nselectors = ["last"]\nstages = ["export"]\n'
    path = put(f"{text}fractions = [{fractions}]\n")
    with pytest.raises(UserError, match=r"up to 120,\d{3} jobs, and a plan has 100,000 at most"):
        sweep.dry_run(path)
