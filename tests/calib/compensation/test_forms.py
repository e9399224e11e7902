"""Forms by their names, and what of each is fitted on moments made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.calib.compensation import forms, maps
from pipeline.calib.compensation.forms import Form, fit
from pipeline.calib.compensation.gathering import Activations, PlaceMoments
from pipeline.models.compensation import MapPlace
from pipeline.types import UserError

C, N = 10, 400
EXACT = 1e-10
MLP = MapPlace.parse("mlp1")


def moments_of(h: np.ndarray, y: np.ndarray, f: np.ndarray) -> PlaceMoments:
    """Of all but the last 50 tokens, which are held back; of them all but the first."""
    moments = PlaceMoments.empty(MLP, C)
    moments.add(Activations(h[:-50], f[:-50], y[:-50], h[:-50]))
    moments.hold(Activations(h[-51:], f[-51:], y[-51:], h[-51:]), 50)
    return moments


def drawn(seed: int = 0) -> tuple[np.random.Generator, np.ndarray, np.ndarray]:
    """(rng, h, y), of which y has nothing to do with h."""
    rng = np.random.default_rng(seed)
    return rng, rng.normal(0.5, 1.0, (N, C)), rng.normal(-0.5, 1.0, (N, C))


def test_names() -> None:
    assert Form.parse("bias", C) == Form("bias", False, 0)
    assert Form.parse("linear", C) == Form("linear", False, None)
    assert Form.parse("matrix", C) == Form("matrix", False, None)
    assert [Form.parse(name, C).has_bias for name in ("linear", "matrix", "bias")] == [True, False, True]
    assert [Form.parse(name, C).has_runs for name in ("linear", "matrix", "bias", "fold", "rank2")] == [
        True, False, False, True, True,
    ]  # fmt: skip
    assert Form.parse("rank10", C) == Form("rank10", False, 10)
    assert Form.parse("fold", C) == Form("fold", True, 0)
    assert Form.parse("fold+rank3", C) == Form("fold+rank3", True, 3)
    for name in ("cubic", "rank0", "linear+rank3", "", "fold+linear"):
        with pytest.raises(
            UserError, match=r"choose from bias, linear, matrix, rank16 .*, fold\+rank16, auto"
        ):
            Form.parse(name, C)
    with pytest.raises(UserError, match="a rank of 11 is not between 1 and the hidden size 10"):
        Form.parse("fold+rank11", C)


def test_what_is_linear_is_explained_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "RIDGES", (EXACT,) * 3)
    rng, h, y = drawn()
    f = h @ rng.normal(size=(C, C)) + rng.normal(size=C)
    linear = fit(moments_of(h, y, f), Form.parse("linear", C))
    assert linear.r2 == pytest.approx(1.0) and linear.fold is None and linear.ridge == EXACT
    np.testing.assert_allclose(linear.map(h), f, atol=1e-6)
    bias = fit(moments_of(h, y, f), Form.parse("bias", C))
    assert bias.ridge is None and bias.map.factors == ()
    np.testing.assert_allclose(bias.map.bias, f[:-50].mean(axis=0))
    rank = fit(moments_of(h, y, f), Form.parse("rank3", C))
    assert bias.r2 is not None and rank.r2 is not None and bias.r2 < 0.1 < rank.r2 < 0.999


def test_the_ridge_of_the_lowest_error_on_held_back_tokens_is_taken() -> None:
    rng, h, y = drawn()
    f = h @ rng.normal(size=(C, C)) + 30 * rng.normal(size=(N, C))  # noise, which a small ridge fits
    moments = moments_of(h, y, f)
    errors = {
        ridge: np.square(f[-50:] - maps.linear(moments.mapped, ridge)(h[-50:])).sum()
        for ridge in forms.RIDGES
    }
    assert fit(moments, Form.parse("linear", C)).ridge == min(errors, key=lambda ridge: errors[ridge])


def test_a_fold_is_exact_where_f_is_linear_in_y(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "RIDGES", (EXACT,) * 3)
    rng, h, y = drawn()
    f = y @ rng.normal(size=(C, C)) + rng.normal(size=C)
    folded = fit(moments_of(h, y, f), Form.parse("fold", C))
    assert folded.fold is not None and folded.r2 == pytest.approx(1.0)
    np.testing.assert_allclose(folded.fold(y) + folded.map.bias, f, atol=1e-6)
    assert folded.map.factors == () and not folded.map.bias.any()


def test_a_rank_fits_what_folding_leaves_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "RIDGES", (EXACT,) * 3)
    rng, h, y = drawn()
    y = y + 0.3 * h @ rng.normal(size=(C, C))  # not independent: h enters the sums of y → f
    f = y @ rng.normal(size=(C, C)) + h @ rng.normal(size=(C, 2)) @ rng.normal(size=(2, C)) + 3.0
    moments = moments_of(h, y, f)
    both = fit(moments, Form.parse("fold+rank10", C))
    assert both.fold is not None and [part.shape for part in both.map.factors] == [(C, 10), (10, C)]
    rest = (f - both.fold(y))[:-50]
    x = np.concatenate([h[:-50], np.ones((N - 50, 1))], axis=1)
    best = x @ np.linalg.lstsq(x, rest, rcond=None)[0]
    np.testing.assert_allclose(both.map(h[:-50]), best, atol=1e-5)
    alone = fit(moments, Form.parse("fold", C))
    assert alone.r2 is not None and both.r2 is not None and alone.r2 < both.r2


def test_what_never_varies_has_no_share() -> None:
    _, h, y = drawn()
    fitted = fit(moments_of(h, y, np.ones((N, C))), Form.parse("bias", C))
    assert fitted.r2 is None and fitted.map.bias == pytest.approx(np.ones(C))
