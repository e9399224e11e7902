from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.types import (
    BASE,
    SkipSet,
    UserError,
    Variant,
    count_of,
    file_name,
    first_line,
    format_layers,
    parse_layers,
    shown,
    variant_file,
)

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
    assert replace(variant, max_tokens=512).stem == "mlp1~heal.fp16.all.static512"
    assert Variant("m", max_tokens=512).stem == "base.fp32.static512"


@pytest.mark.parametrize("text", ["", "a", "3-1", "1,,2", "-1", "1-", "9" * 9])
def test_unreadable_layers(text: str) -> None:
    with pytest.raises(UserError):
        parse_layers(text)


@pytest.mark.parametrize(
    "name", ["", "attn", "attn1+", "+attn1", "norm3", "attn1~heal", "base+attn1", "attn3-1"]
)
def test_what_is_no_variants_name_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(UserError) as error:
        SkipSet.parse(name)
    assert "\n" not in str(error.value)


def test_a_skip_set_knows_its_sublayers() -> None:
    skip = SkipSet((3, 1, 3), (2,))
    assert skip.attention == (1, 3) and (1, "attn") in skip and (1, "mlp") not in skip and skip and not BASE
    assert skip | SkipSet.of("block", [0]) == SkipSet((0, 1, 3), (0, 2))
    assert skip - SkipSet((3, 7), (0, 9)) == SkipSet((1,), (2,)) and not skip - (skip | SkipSet((5,)))
    assert skip.within(4) is skip
    with pytest.raises(UserError, match="layer 3 does not exist: the model has layers 0-2"):
        skip.within(3)
    with pytest.raises(UserError, match="layer -1 is negative"):
        SkipSet((-1,))
    with pytest.raises(UserError, match="'norm' is not a kind of sublayer"):
        SkipSet.of("norm", [1])


@pytest.mark.parametrize("frac", [-0.1, 1.1, 25, float("nan"), float("inf")])
def test_a_fraction_lies_between_0_and_1(frac: float) -> None:
    with pytest.raises(UserError, match=r"25 % is written --frac 0\.25"):
        count_of(frac, 32)


def test_the_first_line_of_a_message() -> None:
    assert first_line(ValueError("\n one \ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError" and first_line("x" * 400, 10) == "x" * 9 + "…"


SCATTERED = SkipSet(tuple(range(0, 80, 2)), tuple(range(1, 80, 2)))


@pytest.mark.parametrize("name", ["base", "attn24-31~heal", "x" * 120, f"attn1~{'é' * 57}"])
def test_short_names_stand_whole_in_file_names(name: str) -> None:
    assert variant_file(name) == name


def test_long_names_are_shortened_and_stay_apart() -> None:
    adapters = ["a" * 100, "a" * 99 + "b", "é" * 100, "模" * 66]
    skips = [SCATTERED, SkipSet(SCATTERED.attention, SCATTERED.attention[:-1]), SkipSet((1,))]
    variants = [
        Variant("m", skip, "fp32", adapter) for skip in skips for adapter in [None, *adapters, "a" * 200]
    ]
    stems = [variant.stem for variant in variants]
    assert len(set(stems)) == len(variants)
    for variant in variants:
        assert len(variant.file.encode()) <= 122
        assert ("~" in variant.file) == (variant.adapter is not None)
        assert variant.name.startswith(variant.file[:40].split("~")[0])  # a beginning that a person reads
    assert len(SCATTERED.name) == 236 and SkipSet.parse(SCATTERED.name) == SCATTERED


def test_no_name_that_stands_whole_is_a_shortened_one() -> None:
    """Even one that was chosen to be: what is shortened is longer than all that are not."""
    for name in ("x" * 300, "é" * 300, f"attn1~{'a' * 200}"):
        shortened = variant_file(name)
        assert shortened != name and variant_file(shortened) != shortened
    for limit in (20, 21, 22, 23):
        assert len(file_name("模" * 50, limit).encode()) == limit + 1


def test_long_lists_are_cut_in_messages() -> None:
    assert shown(["a", "b"]) == "a, b"
    assert shown("abcde") == "a, b, c and 2 more"
    assert shown(["x" * 300]) == "x" * 200
