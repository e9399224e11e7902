"""Which layers of llama.cpp's `deci` say a variant."""

from __future__ import annotations

import pytest

from pipeline.models.compensation import MapPlace
from pipeline.ship.gguf.layers import NOTHING, OWN, Layer, LayerPart, MapShape, layers
from pipeline.types import SkipSet

ATTENTION, MLP = MapPlace(1, 1, "attn"), MapPlace(1, 1, "mlp")


def test_a_skipped_mlp_adds_nothing_and_a_skipped_attention_has_no_heads() -> None:
    written = layers(SkipSet.parse("attn1+mlp2"), 3, {})
    assert written == (Layer(0, OWN, OWN), Layer(1, None, OWN), Layer(2, OWN, NOTHING))


def test_whole_layers_are_renumbered_away_and_the_first_one_has_heads() -> None:
    written = layers(SkipSet.parse("attn0_2+mlp0-1"), 4, {})
    assert written == (Layer(1, OWN, NOTHING), Layer(2, None, OWN), Layer(3, OWN, OWN))
    (first, *_) = layers(SkipSet.parse("attn0-1"), 3, {})
    assert first == Layer(0, NOTHING, OWN)  # a linear map of zeros


def test_a_map_of_an_attention_without_bias_is_the_layers_own_attention() -> None:
    written = layers(SkipSet.parse("attn1"), 2, {ATTENTION: MapShape(None, has_bias=False)})
    assert written[1] == Layer(1, LayerPart("linear", ATTENTION), OWN)


def test_a_bias_takes_the_feed_forward_so_that_the_mlp_gets_a_layer_of_its_own() -> None:
    written = layers(SkipSet.parse("attn1"), 2, {ATTENTION: MapShape(None, has_bias=True)})
    linear, constant = LayerPart("linear", ATTENTION), LayerPart("constant", ATTENTION)
    assert written[1:] == (Layer(1, linear, constant), Layer(1, None, OWN))


@pytest.mark.parametrize("has_bias", [True, False])
def test_the_order_of_the_stream_is_kept(has_bias: bool) -> None:
    both = {place: MapShape(None, has_bias) for place in (ATTENTION, MLP)}
    written = layers(SkipSet.parse("block1"), 2, both)
    assert [layer.index for layer in written] == [0, 1, 1]
    assert [layer.attention for layer in written[1:]] == [
        LayerPart("linear", ATTENTION),
        LayerPart("linear", MLP),
    ]
    kinds = [layer.feed_forward.form for layer in written[1:]]
    assert kinds == (["constant", "constant"] if has_bias else ["nothing", "nothing"])


def test_a_map_of_low_rank_and_a_constant_are_feed_forwards() -> None:
    written = layers(
        SkipSet.parse("block1"), 2, {ATTENTION: MapShape(4, has_bias=True), MLP: MapShape(0, has_bias=True)}
    )
    assert [(one.attention, one.feed_forward.form) for one in written[1:]] == [
        (None, "low rank"),
        (None, "constant"),
    ]


def test_a_map_of_nothing_is_no_layer() -> None:
    assert layers(SkipSet.parse("block1"), 2, {MLP: MapShape(0, has_bias=False)}) == (Layer(0, OWN, OWN),)
