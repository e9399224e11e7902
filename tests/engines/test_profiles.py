from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from pipeline import store
from pipeline.engines import profiles
from pipeline.runtime.tensorrt_library import Range
from pipeline.store.records import Ranges
from pipeline.types import UserError

INPUTS: dict[str, tuple[int, ...]] = {
    "input_ids": (-1, -1),
    "attention_mask": (-1, -1),
    "position_ids": (-1, -1),
    "logits_positions": (-1, -1),
    "past_key_values.0.key": (-1, 2, -1, 16),
}


def ranges(length: Range, past: Range, batch: Range = (1, 1, 8)) -> Ranges:
    return profiles.ranges(Path("graphs/tiny"), batch, length, past)


@pytest.fixture
def context(workdir: Path) -> None:
    store.write_json(Path("graphs/tiny/config.json"), {"max_position_embeddings": 256})


@pytest.mark.usefixtures("context")
@pytest.mark.parametrize(
    "inputs", [INPUTS, {n: s for n, s in INPUTS.items() if "past" not in n}], ids=["cache", "no cache"]
)
def test_profiles_are_consistent(inputs: dict[str, tuple[int, ...]]) -> None:
    prefill, decode = profiles.profiles(inputs, ranges((1, 50, 100), (3, 60, 120)))
    for profile, lengths, pasts in ((prefill, (1, 50, 100), (0, 0, 120)), (decode, (1, 1, 1), (3, 60, 120))):
        for at in range(3):
            batch = (1, 1, 8)[at]
            assert profile["input_ids"][at] == profile["position_ids"][at] == (batch, lengths[at])
            assert profile["attention_mask"][at] == (batch, pasts[at] + lengths[at])
            assert profile["logits_positions"][at][1] <= lengths[at]
            if "past_key_values.0.key" in inputs:
                assert profile["past_key_values.0.key"][at] == (batch, 2, pasts[at], 16)
    assert prefill["logits_positions"] == ((1, 1), (1, 1), (8, 100))


@pytest.mark.usefixtures("context")
def test_ranges_are_cut_to_the_context_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    length, past = (1, 100, 256), (0, 100, 255)
    built = ranges(length, past)
    assert built == Ranges(batch=(1, 1, 8), length=length, past=past, wanted=(1, 1, 128))
    with caplog.at_level(logging.INFO):
        profiles.log_cut(built, length, past)
    assert not caplog.text
    length, past = (1, 100, 2048), (0, 300, 2048)
    built = ranges(length, past)
    with caplog.at_level(logging.INFO):
        profiles.log_cut(built, length, past)
    assert built == Ranges(batch=(1, 1, 8), length=(1, 100, 256), past=(0, 255, 255), wanted=(1, 1, 128))
    assert "context is 256 tokens: building for --length 1,100,256 --past 0,255,255" in caplog.text


@pytest.mark.usefixtures("context")
@pytest.mark.parametrize(
    ("option", "values"),
    [("--batch", {"batch": (0, 1, 8)}), ("--length", {"length": (0, 1, 2)}), ("--past", {"past": (5, 3, 9)})],
)
def test_ranges_that_are_none(option: str, values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{option} .* is not min,opt,max in ascending order"):
        ranges(**{"length": (1, 1, 2), "past": (0, 0, 2), **values})


@pytest.mark.usefixtures("context")
def test_a_static_cache_has_its_size_and_takes_prompts_in_pieces(caplog: pytest.LogCaptureFixture) -> None:
    built = profiles.within_places(ranges((1, 100, 2048), (0, 100, 2048)), 200)
    assert built == Ranges(batch=(1, 1, 8), length=(1, 100, 200), past=(0, 100, 199), wanted=(1, 1, 128))
    wide = Ranges(batch=(1, 1, 8), length=(1, 300, 2048), past=(5, 3000, 4000), wanted=(1, 1, 300))
    short = profiles.within_places(wide, 1024)
    assert short.length == (1, 256, 256) and short.past == (0, 1023, 1023) and short.wanted == (1, 1, 256)
    inputs = {**INPUTS, "write_indices": (-1,), "attention_mask": (-1, 200)}
    inputs["past_key_values.0.key"] = (-1, 2, 200, 16)
    prefill, decode = profiles.profiles(inputs, built)
    for profile in (prefill, decode):
        assert profile["write_indices"] == ((1,), (1,), (8,))
        assert profile["attention_mask"] == ((1, 200), (1, 200), (8, 200))
        assert profile["past_key_values.0.key"] == ((1, 2, 200, 16), (1, 2, 200, 16), (8, 2, 200, 16))
    assert prefill["input_ids"] == ((1, 1), (1, 100), (8, 200))
    assert decode["input_ids"] == ((1, 1), (1, 1), (8, 1))
    with caplog.at_level(logging.INFO):
        profiles.log_cut(built, (1, 100, 2048), (0, 100, 2048), 200)
    assert "a static cache of 200 tokens: building for --length 1,100,200" in caplog.text
