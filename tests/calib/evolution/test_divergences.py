"""KL to the whole model: nought of itself, that of whole passes of any other, whatever stands beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.calib.evolution.divergences import EVERY, Divergences
from pipeline.models.compensation import MapParts, MapPlace
from pipeline.models.reference import FAST, Reference
from pipeline.types import BASE, SkipSet, UserError
from tests import tiny

LAYERS, LENGTH = 5, 18
SKIPS = [
    SkipSet((1, 3)),
    SkipSet((1,), (2, 4)),
    SkipSet((), (0,)),
    SkipSet((0, 1, 2, 3, 4)),
    BASE,
    SkipSet((1,), (2, 3)),
    SkipSet((4,), (4,)),
]


@pytest.fixture
def reference(tmp_path: Path, request: pytest.FixtureRequest) -> Reference:
    family = getattr(request, "param", "llama")
    return Reference(tiny.checkpoint(tmp_path, family, num_hidden_layers=LAYERS), load=FAST)


@pytest.fixture
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(3, 96, (3, LENGTH))


def whole_passes(
    reference: Reference, tokens: np.ndarray, skip: SkipSet, maps: dict[MapPlace, MapParts] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(KL, loss) [N] in float64, of two whole passes with all logits."""
    at = np.arange(EVERY - 1, LENGTH - 1, EVERY)
    ids = torch.from_numpy(tokens)
    with torch.inference_mode():
        teacher = torch.log_softmax(reference.model(ids, use_cache=False).logits[:, at].double(), -1)
        with reference.without(skip, maps):
            student = torch.log_softmax(reference.model(ids, use_cache=False).logits[:, at].double(), -1)
    losses = -student.gather(2, ids[:, at + 1][..., None]).mean(dim=(1, 2))
    return (teacher.exp() * (teacher - student)).sum(-1).mean(-1).numpy(), losses.numpy()


@pytest.mark.parametrize("reference", ["llama", "phi", "gemma3_text"], indirect=True)
def test_shared_beginnings_give_the_numbers_of_whole_passes(reference: Reference, tokens: np.ndarray) -> None:
    together = Divergences(reference, tokens).measure(SKIPS)
    for skip, row in zip(SKIPS, together, strict=True):
        alone = Divergences(reference, tokens)
        divergences, losses = whole_passes(reference, tokens, skip)
        np.testing.assert_array_equal(alone.of(skip), row)  # bit for bit
        np.testing.assert_allclose(row, divergences, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(alone.losses(skip), losses, rtol=1e-5)
    assert (together[SKIPS.index(BASE)] == 0).all()
    assert (np.delete(together, SKIPS.index(BASE), axis=0) > 1e-3).all()


def test_some_rows_are_those_of_all(reference: Reference, tokens: np.ndarray) -> None:
    divergences = Divergences(reference, tokens)
    some = divergences.measure(SKIPS[:3], [2, 0])
    np.testing.assert_array_equal(some, divergences.measure(SKIPS[:3])[:, [2, 0]])


def test_maps_stand_where_all_of_theirs_is_left_out(reference: Reference, tokens: np.ndarray) -> None:
    torch.manual_seed(0)
    places = [MapPlace(1, 1, "attn"), MapPlace(2, 2, "mlp"), MapPlace(3, 4, "block")]
    maps = {place: ([torch.randn(64, 64) / 16], torch.randn(64) / 8) for place in places}
    skips = [SkipSet((1,)), SkipSet((1, 3), (2, 3)), SkipSet((1, 3, 4), (3, 4)), SkipSet((3,), (3, 4))]
    together = Divergences(reference, tokens, maps).measure(skips)
    for skip, row, names in zip(skips, together, ([0], [0, 1], [0, 2], []), strict=True):
        active = {places[k]: maps[places[k]] for k in names}
        expected, _ = whole_passes(reference, tokens, skip, active)
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-6)


def test_the_head_in_pieces_gives_the_same(
    reference: Reference, tokens: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Divergences(reference, tokens).measure(SKIPS)
    monkeypatch.setattr("pipeline.models.head.LOGIT_NUMBERS", 2 * 96)
    np.testing.assert_allclose(Divergences(reference, tokens).measure(SKIPS), whole, rtol=1e-5, atol=1e-7)


def test_beginnings_are_computed_once(reference: Reference, tokens: np.ndarray) -> None:
    calls = [0] * LAYERS

    def count(layer: int) -> None:
        calls[layer] += 1

    for layer, module in enumerate(reference.layers):
        module.input_layernorm.register_forward_hook(lambda *_, layer=layer: count(layer))
    Divergences(reference, tokens[:1]).measure([SkipSet((), (3,)), SkipSet((), (4,)), SkipSet((2,))])
    # the whole model; and then (mlp4), (mlp3) from layer 3 on, (attn2) from layer 2 on
    assert calls == [2, 2, 3, 4, 4]


def test_what_cannot_be_measured_is_refused(reference: Reference, tokens: np.ndarray) -> None:
    with pytest.raises(UserError, match="too short"):
        Divergences(reference, tokens[:, :4])
    with torch.no_grad():
        reference.model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        Divergences(reference, tokens).of(SkipSet((0,)))
