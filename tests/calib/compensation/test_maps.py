"""Maps in closed form: each is held to what numpy's own solvers give on the tokens themselves."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.calib.compensation import maps
from pipeline.calib.compensation.maps import Moments
from pipeline.types import UserError

C = 12


def tokens(count: int = 200, noise: float = 0.1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """h and f [count, C], f nearly a map of rank 3 and a constant."""
    rng = np.random.default_rng(seed)
    h = rng.normal(1.0, 1.0, (count, C))
    true = rng.normal(size=(C, 3)) @ rng.normal(size=(3, C))
    return h, h @ true + rng.normal(size=C) + noise * rng.normal(size=(count, C))


def moments_of(h: np.ndarray, f: np.ndarray, pieces: int = 3) -> Moments:
    moments = Moments.empty(C)
    for part_h, part_f in zip(np.array_split(h, pieces), np.array_split(f, pieces), strict=True):
        moments.add(part_h, part_f, np.ones(len(part_h)))
    return moments


def test_the_linear_map_is_ridge_regression_with_a_free_bias() -> None:
    h, f = tokens()
    ridge = 0.03
    penalty = np.sqrt(ridge * np.median(np.square(h).sum(axis=0)))
    x = np.block([[h, np.ones((len(h), 1))], [penalty * np.eye(C), np.zeros((C, 1))]])
    expected, *_ = np.linalg.lstsq(x, np.vstack([f, np.zeros((C, C))]), rcond=None)
    got = maps.linear(moments_of(h, f), ridge)
    np.testing.assert_allclose(got.factors[0], expected[:-1], rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(got.bias, expected[-1], rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(got(h), h @ expected[:-1] + expected[-1])


def test_the_matrix_alone_is_ridge_regression_through_the_origin() -> None:
    h, f = tokens(300)
    f = f + 3.0
    moments, ridge = moments_of(h, f), 0.03
    got = maps.matrix(moments, ridge)
    penalty = ridge * np.median(np.square(h).sum(0))
    wanted = np.linalg.solve(h.T @ h + penalty * np.eye(C), h.T @ f)
    np.testing.assert_allclose(got.factors[0], wanted, rtol=1e-9)
    assert not got.bias.any() and got.bias.shape == (C,)
    assert np.square(f - got(h)).sum() > np.square(f - maps.linear(moments, ridge)(h)).sum()


def test_one_massive_activation_leaves_the_ridge_as_it_is() -> None:
    """A thousand times as large as all others, in one entry: the map of the others is what it was."""
    h, f = tokens()
    massive = np.zeros((1, C))
    massive[0, 2] = 1000 * np.abs(h).max()
    before = maps.linear(moments_of(h, f), 0.3)
    after = maps.linear(moments_of(np.vstack([h, massive]), np.vstack([f, np.zeros((1, C))])), 0.3)
    others = [i for i in range(C) if i != 2]
    np.testing.assert_allclose(after.factors[0][others], before.factors[0][others], atol=0.15)
    assert np.abs(after(massive)).max() < 1.0 < np.abs(before(massive)).max()


def test_the_bias_is_the_mean() -> None:
    h, f = tokens()
    got = maps.bias(moments_of(h, f))
    np.testing.assert_allclose(got(h), np.broadcast_to(f.mean(axis=0), f.shape))
    assert got.parameters == C


def test_a_low_rank_map_is_the_best_of_its_rank() -> None:
    """Of the predictions of the linear map, the nearest ones of that rank (Eckart & Young 1936)."""
    h, f = tokens()
    moments = moments_of(h, f)
    whole = maps.linear(moments, 1e-9)(h)
    mean = whole.mean(axis=0)
    u, s, vt = np.linalg.svd(whole - mean, full_matrices=False)
    for rank in (1, 3, C):
        got = maps.low_rank(moments, 1e-9, rank)
        assert [factor.shape for factor in got.factors] == [(C, rank), (rank, C)]
        np.testing.assert_allclose(got(h), (u[:, :rank] * s[:rank]) @ vt[:rank] + mean, atol=1e-6)


def test_a_fold_changes_what_the_projection_before_writes() -> None:
    rng = np.random.default_rng(1)
    weight, x = rng.normal(size=(C, 5)), rng.normal(size=(300, 5))
    y = x @ weight.T
    f = y @ rng.normal(size=(C, C)) + 2.0
    fold = maps.linear(moments_of(y, f), 1e-9)
    np.testing.assert_allclose(x @ maps.folded(weight, fold.factors[0]).T + fold.bias, y + f, atol=1e-5)


def test_what_a_map_leaves_unexplained() -> None:
    h, f = tokens()
    moments = moments_of(h, f)
    rest = np.square(f - maps.linear(moments, 0.03)(h)).sum()
    assert maps.unexplained(moments, float(np.square(f).sum()), 0.03) == pytest.approx(rest)


def test_what_cannot_be_fitted_is_refused() -> None:
    h, f = tokens(2 * C - 1)
    with pytest.raises(UserError, match=rf"{2 * C - 1} tokens are too few .* at least {2 * C}"):
        maps.linear(moments_of(h, f), 0.03)
    h, f = tokens()
    for rank in (0, C + 1):
        with pytest.raises(UserError, match=rf"a rank of {rank} is not between 1 and the hidden size {C}"):
            maps.low_rank(moments_of(h, f), 0.03, rank)
    h[3, 2] = np.nan
    with pytest.raises(UserError, match="not finite"):
        maps.linear(moments_of(h, f), 0.03)
