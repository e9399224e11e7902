"""Predictions against numbers that were worked out by hand, and against public measurements."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from pipeline.evals import gpus
from pipeline.evals.gpus import Gpu
from pipeline.evals.predict.candidates import CostedVariant
from pipeline.evals.predict.launches import StandIn
from pipeline.evals.predict.predict import PredictedRow, PredictSettings, predict
from pipeline.models.compensation import MapSizes
from pipeline.models.config import Config
from pipeline.models.named_configs import NamedConfig
from pipeline.types import BASE, SkipSet, UserError
from tests.evals.test_roofline import SMALL, gpu

LLAMA_2_7B = json.loads((Path(__file__).parent / "llama-2-7b.json").read_text())
LLAMA_3 = {"model_type": "llama", "vocab_size": 128_256, "num_key_value_heads": 8, "head_dim": 128}
WHOLE = CostedVariant("base", BASE)


def last(kind: str, count: int) -> CostedVariant:
    skip = SkipSet.of(kind, range(32 - count, 32))
    return CostedVariant(skip.name, skip)


def rows(config: Config, card: Gpu, *variants: CostedVariant, **settings: object) -> list[PredictedRow]:
    model = NamedConfig("m", config, Path("config.json"))
    return list(predict(model, [WHOLE, *variants], card, PredictSettings(**settings)).rows)  # type: ignore[arg-type]


def test_a_small_model_by_hand() -> None:
    """148,608 bytes and 7,436,288 FLOPs of a prefill; 2 · 40 + 21 launches of 10 µs."""
    (row,) = rows(SMALL, gpu(1, 1), lengths=(50,))
    assert row.prefill and row.decode
    assert row.prefill.engine_ms == pytest.approx(0.148608) and row.prefill.engine_bound == "bytes"
    assert (row.prefill.launches, row.prefill.eager_ms) == (101, pytest.approx(1.01))
    assert row.prefill.eager_bound == "launches"
    (row,) = rows(SMALL, gpu(1, 0.001), lengths=(50,))
    assert row.prefill and row.decode
    assert row.prefill.engine_ms == pytest.approx(7.436288) and row.prefill.engine_bound == "FLOPs"
    assert (row.prefill.eager_ms, row.prefill.eager_bound) == (row.prefill.engine_ms, "FLOPs")
    assert row.decode.engine_ms == pytest.approx(0.16128) and row.decode.eager_bound == "launches"


def test_what_a_variant_saves_by_hand() -> None:
    """Of 101 launches an attention has 26; of the bytes it has 2 · (12,352 + 50 · 64)."""
    cut = CostedVariant("attn1", SkipSet((1,), ()))
    _, row = rows(SMALL, gpu(1, 1), cut, lengths=(50,))
    assert row.prefill
    assert row.prefill.eager_saved == pytest.approx(100 * 26 / 101)
    assert row.prefill.engine_saved == pytest.approx(100 * 2 * (12_352 + 50 * 64) / 148_608)


def test_where_bytes_bind_eager_pytorch_saves_what_an_engine_saves() -> None:
    """A T4 reads 2 · (6,738,415,616 − 32,000 · 4096) bytes of weights and 100 · 524,288 of cache."""
    base, cut = rows(LLAMA_2_7B, gpus.find("t4"), last("mlp", 11), lengths=(100,))
    assert base.decode and cut.decode and base.decode.eager_bound == cut.decode.eager_bound == "bytes"
    read = 2 * (6_738_415_616 - 32_000 * 4096) + 100 * 524_288
    assert base.decode.eager_ms == base.decode.engine_ms == pytest.approx(read / 300e6)
    assert cut.decode.eager_saved == cut.decode.engine_saved
    base, cut = rows(LLAMA_2_7B, gpus.find("t4"), last("mlp", 11), lengths=(100,), launch_us=31.0)
    assert base.decode and cut.decode
    assert (base.decode.eager_bound, cut.decode.eager_bound) == ("bytes", "launches")
    assert cut.decode.eager_saved == pytest.approx(100 * (1 - 1147 * 31e-3 / (read / 300e6)))


def test_maps_cost_bytes_flops_and_launches() -> None:
    skip = SkipSet((), (1,))
    bare = CostedVariant("mlp1", skip)
    mapped = CostedVariant("mlp1~linear", skip, MapSizes(64 * 65, 64 * 64), (StandIn(1, True),))
    _, without, with_map = rows(SMALL, gpu(1, 1000), bare, mapped, lengths=(10,))
    assert without.decode and with_map.decode
    assert with_map.decode.launches - without.decode.launches == 8 + 1 + 2
    assert with_map.decode.engine_ms - without.decode.engine_ms == pytest.approx(2 * 64 * 65 / 1e9 * 1e3)
    assert with_map.needs_gb - without.needs_gb == pytest.approx(2 * 64 * 65 / 1e9)


@pytest.mark.parametrize("name", gpus.known())
def test_less_work_takes_less_and_a_longer_text_more(name: str) -> None:
    cuts = [last("mlp", count) for count in (4, 8, 11)] + [last("block", 11)]
    found = rows(LLAMA_2_7B, gpus.find(name), *cuts, lengths=(50, 100, 900))
    for work in ("prefill", "decode"):
        times = [getattr(row, work) for row in found]
        for first in range(0, len(times), 5):
            group = times[first : first + 5]
            assert all(a.engine_ms > b.engine_ms for a, b in itertools.pairwise(group))
            assert all(a.eager_ms > b.eager_ms for a, b in itertools.pairwise(group))
            assert all(one.eager_ms >= one.engine_ms for one in group)
        assert times[0].engine_ms < times[5].engine_ms < times[10].engine_ms


def test_launches_favour_attention_and_bytes_the_mlp() -> None:
    _, attention, mlp = rows(LLAMA_2_7B, gpus.find("a100"), last("attn", 11), last("mlp", 11), lengths=(50,))
    assert attention.prefill and mlp.prefill
    assert attention.prefill.eager_saved == pytest.approx(22.0, abs=0.05)
    assert mlp.prefill.eager_saved == pytest.approx(11.8, abs=0.05)
    assert attention.prefill.engine_saved == pytest.approx(11.2, abs=0.05)
    assert mlp.prefill.engine_saved == pytest.approx(22.5, abs=0.05)


@pytest.mark.parametrize(
    ("hidden", "feed_forward", "layers", "heads", "tied", "measured"),
    [
        (2048, 8192, 16, 32, True, 17.331),
        (3072, 8192, 28, 24, True, 29.626),
        (4096, 14336, 32, 32, False, 34.352),
    ],
)
def test_three_sizes_of_llama_as_transformers_measured_them(
    hidden: int, feed_forward: int, layers: int, heads: int, tied: bool, measured: float
) -> None:
    """huggingface/transformers pull request 39847, ms for a token: 26 µs a launch fits all three."""
    config = LLAMA_3 | {
        "hidden_size": hidden, "intermediate_size": feed_forward, "num_hidden_layers": layers,
        "num_attention_heads": heads, "tie_word_embeddings": tied,
    }  # fmt: skip
    (row,) = rows(config, gpus.find("h100"), lengths=(100,))
    assert row.decode and row.decode.eager_bound == "launches"
    assert row.decode.eager_ms == pytest.approx(measured, rel=0.02)


def test_llama_2_7b_on_an_a10_as_it_was_measured() -> None:
    """InternLM/lmdeploy issue 210: about 34 ms for a token with transformers, 27 ms with lmdeploy."""
    (row,) = rows(LLAMA_2_7B, gpus.find("a10"), lengths=(100,))
    assert row.decode and row.decode.eager_ms == pytest.approx(34, rel=0.03)
    assert 0.8 * 27 < row.decode.engine_ms < 27


def test_a_model_that_does_not_fit_has_no_times() -> None:
    config = LLAMA_2_7B | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
                           "num_attention_heads": 64, "num_key_value_heads": 8}  # fmt: skip
    (row,) = rows(config, gpus.find("h100"), lengths=(100,))
    assert not row.fits and row.prefill is row.decode is None
    assert row.needs_gb == pytest.approx((68_976_648_192 + 101 * 2 * 8 * 128 * 80) * 2 / 1e9)
    assert rows(config, gpus.find("h200"), lengths=(100,))[0].fits
    base, cut = rows(LLAMA_2_7B, gpu(900, 65, memory=12), last("block", 11), lengths=(50,))
    assert not base.fits and cut.fits and cut.decode and 30 < cut.decode.engine_saved < 35


def test_batch_and_launch_us() -> None:
    (one,) = rows(LLAMA_2_7B, gpus.find("a100"), lengths=(100,))
    (many,) = rows(LLAMA_2_7B, gpus.find("a100"), lengths=(100,), batch=16, launch_us=5.0)
    assert one.prefill and many.prefill and many.decode
    assert many.prefill.engine_bound == "FLOPs" and one.prefill.engine_bound == "bytes"
    assert many.decode.launches * 5e-3 < many.decode.engine_ms and many.decode.eager_bound == "bytes"
    model = NamedConfig("m", LLAMA_2_7B, Path("config.json"))
    own = predict(model, [WHOLE], gpus.find("a100"))
    assert own.launch_us == 23.9 and own.launch_source == gpus.find("a100").launch.source
    told = predict(model, [WHOLE], gpus.find("a100"), PredictSettings(launch_us=5.0))
    assert (told.launch_us, told.launch_source) == (5.0, "--launch-us")
    assert json.loads(json.dumps(told.plain()))["rows"][0]["prefill"]["launches"] == 1301


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lengths": ()}, "--lengths and --batch must be at least 1"),
        ({"lengths": (50, 0)}, "--lengths and --batch must be at least 1"),
        ({"batch": 0}, "--lengths and --batch must be at least 1"),
        ({"launch_us": 0.0}, "--launch-us 0 is not a time"),
        ({"launch_us": float("nan")}, "--launch-us nan is not a time"),
    ],
)
def test_odd_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PredictSettings(**settings)  # type: ignore[arg-type]


def test_a_config_without_sizes() -> None:
    with pytest.raises(
        UserError, match=r"config\.json of 'gpt2' has no 'hidden_size': its costs are not known"
    ):
        rows({"model_type": "gpt2", "n_embd": 768}, gpus.find("a100"))
