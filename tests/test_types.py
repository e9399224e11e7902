from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.calib import selectors
from pipeline.calib.skip_options import SkipOptions
from pipeline.types import BASE, SkipSet, UserError, Variant, count_of, format_layers, parse_layers

layers = st.sets(st.integers(0, 80)).map(lambda s: tuple(sorted(s)))


@given(layers, layers)
def test_a_name_says_the_whole_skip_set(attention: tuple[int, ...], mlp: tuple[int, ...]) -> None:
    skip = SkipSet(attention, mlp)
    assert SkipSet.parse(skip.name) == skip


@given(layers.filter(bool))
def test_layers_round_trip(some: tuple[int, ...]) -> None:
    assert parse_layers(format_layers(some)) == some


@pytest.mark.parametrize(
    ("skip", "name"),
    [
        (BASE, "base"),
        (SkipSet.of("attn", range(24, 32)), "attn24-31"),
        (SkipSet.of("block", range(21, 32)), "block21-31"),
        (SkipSet(tuple(range(20, 29)), tuple(range(25, 32))), "attn20-28+mlp25-31"),
        (SkipSet.of("attn", [18, 20, *range(24, 30)]), "attn18_20_24-29"),
    ],
)
def test_names_of_the_design(skip: SkipSet, name: str) -> None:
    assert skip.name == name and SkipSet.parse(name) == skip


def test_counts_are_the_papers() -> None:
    assert [count_of(f, 32) for f in (0.1, 0.25, 0.33)] == [4, 8, 11]
    assert [count_of(f, 40) for f in (0.1, 0.25, 0.33)] == [4, 10, 14]
    assert [count_of(f, 30) for f in (0, 0.1, 0.25, 0.33, 1)] == [0, 3, 8, 10, 30]


def test_variant_files() -> None:
    variant = Variant("m", SkipSet.of("mlp", [1]), "fp16", adapter="heal", head="all")
    assert variant.name == "mlp1~heal" and variant.stem == "mlp1~heal.fp16.all"


@pytest.mark.parametrize("text", ["", "a", "3-1", "1,,2", "-1", "1-", "9" * 9])
def test_unreadable_layers(text: str) -> None:
    with pytest.raises(UserError):
        parse_layers(text)


def test_selectors_and_their_options() -> None:
    def choose(*options, layers: int) -> SkipSet:
        return SkipOptions(*options).skip_set(layers)

    assert choose("mlp", 0.25, None, None, None, layers=30).name == "mlp22-29"
    assert choose("attn", 0.33, None, None, "last-but-final", layers=30).name == "attn19-28"
    assert choose("block", None, None, "3,7,20-29", None, layers=30).name == "block3_7_20-29"
    assert choose("attn20-28+mlp25-29", None, None, None, None, layers=30).name == "attn20-28+mlp25-29"
    assert (
        choose(None, None, None, None, None, layers=30)
        == choose("attn", 0.0, None, None, None, layers=30)
        == BASE
    )
    assert choose("block", None, 30, None, None, layers=30).name == "block0-29"
    assert set(selectors.names()) >= {"last", "last-but-final"}


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
def test_wrong_options(options: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SkipOptions(*options).skip_set(30)
