"""Sums on a device: the products of all tokens at once, and how much memory they take."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.calib.compensation.device_sums import DeviceSums, device_bytes
from pipeline.calib.compensation.maps import Moments
from pipeline.models import devices

WIDTH = 6
RNG = np.random.default_rng(0)


def rows(count: int) -> np.ndarray:
    return RNG.normal(size=(count, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("folds", [True, False])
def test_pieces_add_up_to_the_products_of_the_whole(folds: bool) -> None:
    h, f, y, weights = rows(20), rows(20), rows(20), RNG.uniform(size=20)
    sums = DeviceSums(WIDTH, folds, "cpu")
    for part in (slice(0, 7), slice(7, 20)):
        sums.add(h[part], f[part], y[part] if folds else None, weights[part])
    mapped, folded = Moments.empty(WIDTH), Moments.empty(WIDTH)
    between = np.full((WIDTH + 1, WIDTH), 2.0)  # what is there stays
    sums.add_to(mapped, *((folded, between) if folds else (None, None)))
    x, z = (np.hstack([part.astype(np.float64), np.ones((20, 1))]) for part in (h, y))
    scale = np.diag(weights)
    expected = [x.T @ scale @ x, x.T @ scale @ f]
    expected += [z.T @ scale @ z, z.T @ scale @ f, 2 + x.T @ scale @ y] if folds else []
    got = [mapped.gram, mapped.cross, *((folded.gram, folded.cross, between) if folds else ())]
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    assert mapped.gram.dtype == np.float64


@pytest.mark.parametrize("folds", [True, False])
def test_the_memory_is_no_less_than_that_of_the_sums(folds: bool) -> None:
    sums = DeviceSums(WIDTH, folds, "cpu")
    held = sum(one.nbytes for one in (*sums.mapped, *(sums.folded or ())))
    assert 0.85 * device_bytes(WIDTH, folds) < held <= device_bytes(WIDTH, folds)


def test_all_is_on_the_device() -> None:
    """PyTorch's `meta` stands for CUDA: it takes no tensor of the host."""
    sums = DeviceSums(WIDTH, True, "meta")  # type: ignore[arg-type]
    sums.add(rows(3), rows(3), rows(3), np.ones(3))
    assert {one.device.type for one in (*sums.mapped, *(sums.folded or ()))} == {"meta"}


@pytest.mark.gpu
@pytest.mark.skipif(devices.refusal("cuda") is not None, reason=str(devices.refusal("cuda")))
def test_cuda_sums_as_the_host_does() -> None:
    h, f, y, weights = rows(50), rows(50), rows(50), RNG.uniform(size=50)
    results = []
    for device in ("cuda", "cpu"):
        sums, mapped = DeviceSums(WIDTH, True, device), Moments.empty(WIDTH)  # type: ignore[arg-type]
        folded, between = Moments.empty(WIDTH), np.zeros((WIDTH + 1, WIDTH))
        sums.add(h, f, y, weights)
        sums.add_to(mapped, folded, between)
        results.append((mapped.gram, mapped.cross, folded.gram, folded.cross, between))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)
    assert torch.cuda.is_available()
