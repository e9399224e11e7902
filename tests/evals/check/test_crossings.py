"""A window that is not there, or a rope without its scaling, fails the check; a right graph passes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import store
from pipeline.engines import opening
from pipeline.evals.check import check, scripted
from pipeline.evals.check.crossings import crossings, room
from pipeline.graphs import export, variants
from pipeline.models import checkpoint
from pipeline.models.config import Config, normalised
from pipeline.models.reference import Reference
from pipeline.store.records import Ranges
from pipeline.types import SkipSet
from tests import tiny
from tests.faults import graph

LLAMA3 = {**tiny.LLAMA3, "original_max_position_embeddings": 1024}
LONG = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0 + k for k in range(8)]}


def config(model_type: str, **keys: Any) -> Config:
    """A config.json with these keys, as it is read."""
    return normalised({"model_type": model_type, "num_hidden_layers": 2, **keys}, Path("config.json"))


def row(length: int) -> np.ndarray[Any, Any]:
    """Tokens."""
    return np.arange(3, length + 3)


ENGINE = Ranges(batch=(1, 1, 4), length=(1, 50, 128), past=(0, 50, 512), wanted=(1, 1, 8))
WINDOW_OF_QWEN = {"use_sliding_window": True, "sliding_window": 300, "max_window_layers": 1}
CASES: list[tuple[Config, Ranges | None, list[str], list[str]]] = [
    (config("llama"), None, [], []),
    (config("mistral", sliding_window=7), None, [], []),  # the usual prompts cross it
    (config("mistral", sliding_window=300), None, ["length 316"], []),
    (config("qwen2", **WINDOW_OF_QWEN), None, ["length 316"], []),
    (config("qwen2", sliding_window=300), None, [], []),  # switched off
    (config("mistral"), None, ["cache of 4154"], []),
    (config("mistral", max_position_embeddings=4096), None, [], []),  # no text reaches it
    (config("mistral", sliding_window=300), ENGINE, ["cache of 358"], []),
    (config("mistral"), ENGINE, [], ["needs 4154 tokens, and there is room for 512"]),
    (config("llama", rope_scaling=LLAMA3), None, ["positions to 2047"], []),
    (config("llama", rope_scaling=LLAMA3, max_position_embeddings=1024), None, [], ["context ends at 1024"]),
    (config("llama", rope_scaling={"rope_type": "linear", "factor": 2.0}), None, [], []),
    (config("gemma2"), None, ["cache of 4154"], []),
    (
        config("gemma3_text", sliding_window=512, sliding_window_pattern=2),
        None,
        ["length 528", "positions to 2047"],
        [],
    ),
    (config("gemma3_text", sliding_window=7, layer_types=["full_attention"] * 2), None, [], []),  # one rope
]


@pytest.mark.parametrize(("model", "ranges", "names", "missed"), CASES)
def test_feeds_go_beyond_what_the_config_has(
    model: Config, ranges: Ranges | None, names: list[str], missed: list[str]
) -> None:
    extra = crossings(model, row, ranges)
    assert [feed.name for feed in extra.feeds] == names
    assert len(extra.missed) == len(missed)
    assert all(why in said for why, said in zip(missed, extra.missed, strict=True))


def test_a_gap_moves_the_windows_edge_through_the_prompt() -> None:
    """The first step sees half of the prompt, and each further step one token less."""
    (feed,) = crossings(config("mistral"), row).feeds
    prompt, total = feed.input_ids.shape[1] - scripted.STEPS, feed.attention_mask.shape[1]
    assert feed.attention_mask.sum() == feed.input_ids.shape[1] and feed.gap == total - prompt - 8
    seen = [prompt - (total - scripted.STEPS + t - 4096 + 1) for t in range(scripted.STEPS)]
    assert seen == list(range(49, 41, -1))


def test_positions_of_a_prompt_end_beyond_the_switch() -> None:
    (feed,) = crossings(config("llama", rope_scaling=LLAMA3), row).feeds
    positions = feed.position_ids[0]
    assert positions[0] == 0 and positions[-9] >= 1024 and (np.diff(positions) > 0).all()


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "a window of 4096": (
        "mistral",
        {"sliding_window": 4096, "max_position_embeddings": 8192},
    ),
    "a window of 150": ("mistral", {"sliding_window": 150, "max_position_embeddings": 512}),
    "llama3": (
        "llama",
        {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 128}},
    ),
    "longrope": (
        "phi3",
        {"rope_scaling": LONG, "original_max_position_embeddings": 64, "sliding_window": None},
    ),
    "every other window": (
        "gemma2",
        {"sliding_window": 4096, "max_position_embeddings": 8192, "num_hidden_layers": 4},
    ),
    "a window without rope": (
        "smollm3",
        {"use_sliding_window": True, "sliding_window": 150, "max_position_embeddings": 512},
    ),
    "two ropes": (
        "gemma3_text",
        {
            "max_position_embeddings": 512,
            "num_hidden_layers": 4,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
}
WITHOUT: dict[str, dict[str, Any]] = {
    "a window of 4096": {"sliding_window": None},
    "a window of 150": {"sliding_window": None},
    "llama3": {"rope_scaling": None, "rope_parameters": None},
    "longrope": {
        "rope_scaling": {**LONG, "long_factor": LONG["short_factor"]},
        "rope_parameters": None,
        "rope_theta": 10000.0,
    },
    "every other window": {"layer_types": ["full_attention"] * 4},
    "a window without rope": {"layer_types": ["full_attention"] * 2},
    "two ropes": {  # in the forms of both versions of transformers
        "rope_local_base_freq": 500000.0,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 500000.0},
        },
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("skip", ["base", "attn0"])
def test_a_right_graph_passes_and_one_without_it_fails(name: str, skip: str, workdir: Path) -> None:
    """The wrong graph is written from a config that lacks the window or the scaling, of the same weights."""
    model_type, keys = MODELS[name]
    right = graph(workdir, skip, model_type=model_type, **keys)
    outcome = check.check(right)
    assert outcome.passed and outcome.record.crossed and not outcome.record.missed, outcome.summary()
    file = right.parent / "config.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps({**said, **WITHOUT[name]}))
    wrong = right.read_bytes()
    base = checkpoint.open_checkpoint(right.parent)
    from pipeline.graphs import variants

    again = export.export_base(base)
    path = again if skip == "base" else variants.cut(again, SkipSet.parse(skip))
    assert path == right and path.read_bytes() != wrong
    file.write_text(json.dumps(said))
    outcome = check.check(path, force=True)
    assert not outcome.passed
    assert all(
        any(word in failure for word in ("cache of", "length 166", "positions to"))
        for failure in outcome.record.failures
    ) or name in ("llama3", "longrope", "two ropes")


@pytest.mark.parametrize("skip", ["base", "attn0", "attn0-1", "mlp1"])
def test_a_gap_is_what_a_whole_padded_pass_gives(skip: str, tmp_path: Path) -> None:
    """PyTorch in two passes with a gap, and in one pass whose gap is padding, agree on the real tokens."""
    folder = tiny.checkpoint(tmp_path, "mistral", sliding_window=20)
    reference = Reference(folder, SkipSet.parse(skip))
    ids = np.random.default_rng(0).integers(3, 96, (1, 20))
    mask, positions = np.ones((1, 31), np.int64), np.arange(20)[None]
    mask[:, 12:23] = 0
    logits, cache = reference.forward(ids, mask, positions, 12)
    whole_ids, whole_positions = np.full((1, 31), 5), np.zeros((1, 31), np.int64)
    for whole, part in ((whole_ids, ids), (whole_positions, positions)):
        whole[:, mask[0] == 1] = part
    truth, expected = reference.forward(whole_ids, mask, whole_positions)
    np.testing.assert_allclose(logits, truth[:, mask[0] == 1], rtol=0, atol=1e-5 * np.abs(truth).max())
    assert sorted(cache) == sorted(expected)
    for layer, pair in cache.items():
        for part, one in zip(pair, expected[layer], strict=True):
            real = mask[0] == 1
            np.testing.assert_allclose(part[:, :, real], one[:, :, real], rtol=0, atol=1e-5)


def test_a_graph_plays_a_gap(workdir: Path) -> None:
    path = graph(workdir, "attn0", model_type="mistral", sliding_window=60)
    ids = np.random.default_rng(0).integers(3, 96, (1, 20))
    mask = np.ones((1, 70), np.int64)
    mask[:, 12:62] = 0
    feed = scripted.Feed("gap", ids, mask, np.arange(20)[None])
    with opening.open_runner(path) as runner:
        played = scripted.play(runner, feed.arrays)
    expected = scripted.recompute(Reference(path.parent, SkipSet((0,))), feed.arrays)
    assert played.keys() == expected.keys() and played["present.1.key"].shape[0] == 20
    for name, value in expected.items():
        np.testing.assert_allclose(played[name], value, atol=1e-4, err_msg=name)


def test_what_an_artefact_has_room_for(workdir: Path) -> None:
    path = graph(workdir)
    assert room(store.graph_sidecar(path)) is None
    ranges = room(store.graph_sidecar(variants.cut_static(path, 200)))
    assert ranges and (ranges.length[2], ranges.past[2]) == (200, 200)
    far = crossings(config("mistral", sliding_window=300), row, ranges)
    assert far.missed == ("the sliding window of 300 tokens: it needs 358 tokens, and there is room for 200",)
