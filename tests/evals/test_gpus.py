"""The table of GPUs: datasheet numbers with their sources, and names that are not known."""

from __future__ import annotations

import re

import pytest

from pipeline.evals import gpus
from pipeline.types import UserError


@pytest.mark.parametrize(
    ("name", "memory", "bandwidth", "flops"),
    [
        ("a100", 80, 2.039e12, 312e12),
        ("h100", 80, 3.35e12, 989.4e12),
        ("h200", 141, 4.8e12, 989.4e12),
        ("l40s", 48, 0.864e12, 362e12),
        ("rtx4090", 24, 1.008e12, 165.2e12),
        ("t4", 16, 0.3e12, 65e12),
    ],
)
def test_numbers_are_the_datasheets(name: str, memory: float, bandwidth: float, flops: float) -> None:
    gpu = gpus.find(name)
    assert (gpu.memory, gpu.bandwidth, gpu.flops) == pytest.approx((memory * 2**30, bandwidth, flops))


@pytest.mark.parametrize("name", gpus.known())
def test_each_number_stands_in_the_source_that_is_named(name: str) -> None:
    """FLOP/s are dense: the source's own, or half of what it prints with sparsity."""
    gpu = gpus.known()[name]
    numbers = {float(one.replace(",", "")) for one in re.findall(r"\d[\d,]*\.?\d*", gpu.source)}
    assert name == name.lower() and gpu.memory_gib in numbers
    assert {gpu.bandwidth_gb_s, gpu.bandwidth_gb_s / 1e3} & numbers
    assert any(abs(gpu.fp16_tflops / one - share) < 2e-3 for one in numbers for share in (1, 0.5))
    assert gpu.document.startswith(("https://", "NVIDIA ")) and len(gpu.read) > 5
    assert 10 < gpu.launch.us < 50 and len(gpu.launch.source) > 5


def test_a_launch_costs_what_was_measured_on_that_gpu_or_else_on_any() -> None:
    assert gpus.find("a100").launch.us == pytest.approx(39.2e3 / 1644, abs=0.1)
    assert gpus.find("a100").launch.source.startswith("pytorch.org/blog/")
    assert gpus.find("h100").launch == gpus.find("rtx4090").launch
    assert gpus.find("h100").launch.us == 26.0 and "39847" in gpus.find("h100").launch.source


def test_a_name_may_be_written_large_and_an_unknown_one_lists_all() -> None:
    assert gpus.find(" RTX4090").name == "NVIDIA GeForce RTX 4090"
    with pytest.raises(UserError, match="no GPU 'mi300x' is known; choose from a10, a100, ") as caught:
        gpus.find("mi300x")
    assert all(name in str(caught.value) for name in gpus.known())


def test_drivers_names() -> None:
    names = [device for gpu in gpus.known().values() for device in gpu.devices]
    assert len(names) == len(set(names)) >= len(gpus.known())
    assert gpus.of_device("NVIDIA A100-SXM4-80GB") == gpus.find("a100")
    assert gpus.of_device("NVIDIA A100") is None and gpus.of_device("AMD EPYC 7B13 (2 cores seen)") is None
