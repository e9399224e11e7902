"""The options of `export` that say what is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.calib import selectors
from pipeline.calib.skip_options import SkipOptions
from pipeline.types import UserError
from tests import published

LAYERS = 30


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (("mlp", 0.25, None, None, None), "mlp22-29"),
        (("attn", 0.33, None, None, "last-but-final"), "attn19-28"),
        (("block", None, None, "3,7,20-29", None), "block3_7_20-29"),
        (("attn20-28+mlp25-29", None, None, None, None), "attn20-28+mlp25-29"),
        ((None, None, None, None, None), "base"),
        (("attn", 0.0, None, None, None), "base"),
        (("block", None, LAYERS, None, None), "block0-29"),
    ],
)
def test_options_mean_a_skip_set(options: tuple[Any, ...], name: str) -> None:
    assert SkipOptions(*options).skip_set(LAYERS).name == name


def test_the_papers_rules_are_there() -> None:
    assert set(selectors.names()) >= {"last", "last-but-final", "angular", "cosine", "greedy"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("mlp", 1.5, None, None, None), "not between 0 and 1"),
        (("mlp", None, 31, None, None), "30 layers"),
        (("mlp", None, -1, None, None), "does not fit"),
        (("mlp", 0.5, None, "3", None), "exactly one of"),
        (("mlp", None, None, None, None), "exactly one of"),
        ((None, 0.5, None, None, None), "needs --skip"),
        (("head", 0.5, None, None, None), "names its layers already"),
        (("attn40", None, None, None, None), "layer 40 does not exist"),
        (("nonsense", None, None, None, None), "cannot read the skip set"),
        (("attn", None, None, "40", None), "layer 40 does not exist"),
        (("attn", None, None, "4", "last"), "leave --select out"),
        (("attn", None, 3, None, "best"), "no selector 'best'"),
        (("attn", None, 30, None, "last-but-final"), "keeps the final layer"),
    ],
)
def test_options_that_contradict_or_lack_each_other_are_refused(
    options: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        SkipOptions(*options).skip_set(LAYERS)


def test_a_seed_that_nothing_reads_is_refused() -> None:
    message = "--seed belongs to --select evo or random, and the rule is last; leave it out"
    for options in (SkipOptions("mlp", count=1, seed=0), SkipOptions("mlp3", seed=0), SkipOptions(seed=0)):
        with pytest.raises(UserError, match=message):
            options.skip_set(LAYERS)
    drawn = {
        SkipOptions("mlp", count=4, select="random", seed=seed).skip_set(LAYERS) for seed in (None, 0, 1)
    }
    assert len(drawn) == 2


@pytest.mark.parametrize("rule", ["random", "evo"])
@pytest.mark.parametrize(
    ("seed", "message"), [(-1, "--seed -1 is negative"), (2**32, "--seed 4294967296 is above 4294967295")]
)
def test_a_seed_that_no_record_holds_is_refused(rule: str, seed: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SkipOptions("mlp", count=1, select=rule, seed=seed).skip_set(LAYERS)


def test_a_published_set_by_kind_and_count_or_by_name(workdir: Path) -> None:
    published.write(workdir)
    options = SkipOptions("mlp", count=1, select="published", model="made-up/tiny")
    assert options.skip_set(4).name == "mlp2" and not options.is_bare
    named = SkipOptions(select="published", set_name="dice-any3", model="made-up/tiny")
    assert named.skip_set(4).name == "attn1_3+mlp2" and not named.is_bare
    assert SkipOptions().is_bare


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"select": "last", "set_name": "dice-any3"}, "add --select published"),
        ({"skip": "mlp2", "set_name": "dice-mlp1", "select": "published"}, "leave --skip mlp2 out"),
        ({"layers": "2", "set_name": "dice-mlp1", "select": "published"}, "leave --layers out"),
        (
            {"skip": "mlp", "count": 2, "set_name": "dice-mlp1", "select": "published"},
            "no set dice-mlp1 mlp 2",
        ),
        ({"select": "published"}, "--select needs --skip attn, mlp or block, or --set NAME"),
        ({"skip": "block", "count": 2, "select": "published"}, "name one with --set"),
    ],
)
def test_a_published_set_that_is_not_meant_is_refused(
    workdir: Path, options: dict[str, Any], message: str
) -> None:
    published.write(workdir)
    with pytest.raises(UserError, match=message):
        SkipOptions(**options, model="made-up/tiny").skip_set(4)
