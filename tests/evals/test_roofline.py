"""The roofline against numbers that were worked out by hand."""

from __future__ import annotations

import pytest

from pipeline.evals import roofline
from pipeline.evals.gpus import Gpu
from pipeline.evals.roofline import Traffic
from pipeline.models.compensation import MapSizes
from pipeline.models.costs import Workload
from pipeline.types import BASE, SkipSet

SMALL = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96,
}  # fmt: skip
"""Attention 64·16·(4+2·2) + 4·16·64 = 12,288 and a norm of 64; MLP 3·64·96 = 18,432 and one; head 6,144."""
WEIGHTS = 2 * (12_288 + 64 + 18_432 + 64) + 64 + 6_144
CACHE = 2 * (2 * 2 * 16)


def gpu(bandwidth: float, tflops: float, memory: float = 1) -> Gpu:
    return Gpu(
        name="G",
        memory_gib=memory,
        bandwidth_gb_s=bandwidth,
        fp16_tflops=tflops,
        launch_us=10,
        source="none",
        document="none",
        read="nowhere",
    )


def test_a_decoding_step_reads_weights_and_cache() -> None:
    one = roofline.traffic(SMALL, BASE, "fp16", Workload(50, decode=True))
    assert one.bytes == 2 * (WEIGHTS + 50 * CACHE) == 148_608
    products, scores = 2 * 2 * (12_288 + 18_432), 2 * 4 * 4 * 16 * 51
    assert one.flops == products + scores + 2 * 6_144 == 161_280


def test_a_prefill_writes_its_cache_and_computes_all_positions_but_one_head() -> None:
    one = roofline.traffic(SMALL, BASE, "fp16", Workload(50))
    assert one.bytes == 148_608
    assert one.flops == 2 * (50 * 2 * (12_288 + 18_432) + 4 * 4 * 16 * 50 * 50) + 2 * 6_144 == 7_436_288
    four = roofline.traffic(SMALL, BASE, "fp16", Workload(50, batch=4))
    assert (four.bytes, four.flops) == (2 * (WEIGHTS + 4 * 50 * CACHE), 4 * one.flops)


def test_what_is_skipped_and_what_stands_in_for_it() -> None:
    skip, work = SkipSet((1,), (1,)), Workload(10)
    bare = roofline.traffic(SMALL, skip, "fp16", work)
    assert bare.bytes == 2 * (12_288 + 64 + 18_432 + 64 + 64 + 6_144 + 10 * CACHE // 2)
    mapped = roofline.traffic(SMALL, skip, "fp16", work, MapSizes(5_000, 4_000))
    assert (mapped.bytes - bare.bytes, mapped.flops - bare.flops) == (10_000, 2 * 4_000 * 10)


def test_what_takes_longer_binds() -> None:
    one = Traffic(bytes=1_000_000, flops=50_000_000)
    slow_memory, slow_cores = gpu(1, 1), gpu(1, 0.01)
    assert (one.seconds(slow_memory), one.bound(slow_memory)) == (pytest.approx(1e-3), "bytes")
    assert (one.seconds(slow_cores), one.bound(slow_cores)) == (pytest.approx(5e-3), "FLOPs")


def test_bytes_bind_by_the_balance_of_where_it_runs() -> None:
    """An A100 computes 153 FLOPs in the time of a byte, a T4 216; a processor is taken for 20."""
    for device, balance in (
        ("NVIDIA A100-SXM4-80GB", 153),
        ("Tesla T4", 216),
        ("AMD EPYC (2 cores seen)", 20),
    ):
        assert roofline.bytes_bind(Traffic(1000, (balance - 1) * 1000), device)
        assert not roofline.bytes_bind(Traffic(1000, (balance + 1) * 1000), device)
