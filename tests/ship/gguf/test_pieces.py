"""What a tokenizer.json says of its kind."""

from __future__ import annotations

from pipeline.ship.gguf.pieces import Pieces


def test_scores_are_the_models_or_the_place_of_a_merge() -> None:
    own = Pieces({"a": -3.0}, frozenset({"▁▁"}))
    assert own.scored(["a", "b"], [])[0] == -3.0 and own.scored(["a", "b"], [])[1] < -1000
    assert (
        own.named("▁▁") == ("  ", 4) and own.named("<0x0A>") == ("<0x0A>", 6) and own.named("a") == ("a", 1)
    )
    scores = Pieces({}, frozenset()).scored(["c", "ab", "abc"], [["a", "b"], "ab c"])
    assert scores[1] > scores[2] > scores[0]
