"""The moments of a pass are the sums of what hooks on transformers' own model see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.calib.compensation import gathering
from pipeline.calib.compensation.gathering import Activations, PlaceMoments
from pipeline.models.compensation import MapPlace
from pipeline.models.reference import Reference
from pipeline.types import UserError
from tests import tiny

PLACES = [MapPlace.parse(name) for name in ("attn0", "attn1", "mlp1", "block1-2")]
TOKENS = np.random.default_rng(0).integers(3, 96, (17, 12))
_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")
BEHIND = {"gemma3_text": _NORMS, "olmo2": _NORMS}
"""The norms whose output joins the stream."""


def seen(folder: Path, model_type: str, ids: np.ndarray) -> dict[str, np.ndarray]:
    """What hooks of the test's own see of one sequence: inputs, outputs and streams by name, [T, C]."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    kept: dict[str, np.ndarray] = {}
    scale = getattr(model.config, "residual_multiplier", 1.0)

    def keep(name: str, factor: float = 1.0) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            first = output if isinstance(output, torch.Tensor) else output[0]
            kept[name] = first.detach()[0].double().numpy() * factor

        return hook

    def keep_input(name: str) -> Any:
        def hook(_module: Any, args: Any, kwargs: Any) -> None:
            first = args[0] if args else kwargs["hidden_states"]
            kept[name] = first.detach()[0].double().numpy()

        return hook

    for i, layer in enumerate(model.model.layers):
        layer.register_forward_pre_hook(keep_input(f"x{i}"), with_kwargs=True)
        for kind, module in (("attn", layer.self_attn), ("mlp", layer.mlp)):
            module.register_forward_pre_hook(keep_input(f"h.{kind}{i}"), with_kwargs=True)
            name = BEHIND.get(model_type, (None, None))[kind == "mlp"]
            writes = getattr(layer, name) if name else module
            writes.register_forward_hook(keep(f"f.{kind}{i}", scale))
    with torch.inference_mode():
        model(input_ids=torch.from_numpy(ids)[None], use_cache=False)
    return kept


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "granite", "olmo2", "phi"])
def test_moments_are_sums_over_what_hooks_see(tmp_path: Path, model_type: str) -> None:
    folder = tiny.checkpoint(tmp_path, model_type, num_hidden_layers=4)
    moments = gathering.gather(Reference(folder), TOKENS, PLACES, lambda: None)
    held = gathering.held_back(len(TOKENS))
    assert list(held) == [15, 16]
    rows = [seen(folder, model_type, ids) for ids in TOKENS]
    fitted = [row for number, row in enumerate(rows) if number not in held]

    def stacked(name: str, start: int = 0) -> np.ndarray:
        return np.concatenate([row[name][start:] for row in fitted])

    streams = {"attn0": "x0", "attn1": "x1", "mlp1": "x1", "block1-2": "x1"}
    for place, got in moments.items():
        added = f"f.{place.name}" if place.kind != "block" else "all"
        for row in rows:
            row["all"] = row["x3"] - row["x1"]
        h = stacked(f"h.{place.name}" if place.kind != "block" else "x1")
        f = stacked(added)
        x = stacked(streams[place.name], 1) + (stacked("f.attn1", 1) if place.kind == "mlp" else 0.0)
        read = np.hstack([h, np.ones((len(h), 1))])
        assert got.mapped.tokens == len(h) == 15 * 12
        close(got.mapped.gram, read.T @ read)
        close(got.mapped.cross, read.T @ f)
        close(got.energy, np.square(f).sum())
        close(got.stream, np.square(x).sum())
        assert got.mapped.gram.dtype == np.float64
        if place.name == "attn0":
            assert got.folded is None and got.between is None
        else:
            assert got.folded is not None
            writer = "f.attn1" if place.kind == "mlp" else "f.mlp0"
            y = np.hstack([stacked(writer), np.ones((15 * 12, 1))])
            close(got.folded.gram, y.T @ y)
            close(got.folded.cross, y.T @ stacked(added))
            close(got.between, read.T @ stacked(writer))
            close(got.held_tokens["y"][:11], rows[15][writer][1:])
        assert got.held_tokens["h"].shape == got.held_tokens["f"].shape == (22, 64)


def close(got: Any, wanted: Any) -> None:
    """Within 1e-5 of the largest entry: activations are fp32, sums are not."""
    assert np.abs(np.asarray(got) - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_as_many_passes_as_the_memory_asks_for(tmp_path: Path) -> None:
    size = gathering.bytes_needed(64)
    assert gathering.groups(PLACES, 64, 10 * size) == [sorted(PLACES)]
    assert [len(group) for group in gathering.groups([*PLACES, PLACES[0]], 64, 3 * size)] == [3, 1]
    with pytest.raises(
        UserError, match=r"--memory: 1\.0 MB are too little: the sums of one sublayer take 1\.0 MB"
    ):
        gathering.groups(PLACES, 64, size - 1)
    reference = Reference(tiny.checkpoint(tmp_path, num_hidden_layers=4))
    whole = gathering.gather(reference, TOKENS, PLACES, lambda: None)
    for group in gathering.groups(PLACES, 64, size):
        part = gathering.gather(reference, TOKENS, group, lambda: None)
        np.testing.assert_array_equal(part[group[0]].mapped.cross, whole[group[0]].mapped.cross)


def test_a_massive_activation_counts_as_one_of_eight_times_the_median_length() -> None:
    """In f; one in y has its whole weight, so that no map throws it anywhere."""
    rng = np.random.default_rng(3)
    h, f, y, x = (rng.normal(size=(51, 64)) for _ in range(4))
    f[0] *= 1000
    y[7] *= 1000
    lengths = np.linalg.norm(f, axis=1)
    longest = 8 * np.median(lengths)
    weights = gathering.token_weights(f)
    assert weights[1:].tolist() == [1.0] * 50
    assert np.sqrt(weights[0]) * lengths[0] == pytest.approx(longest)
    moments = PlaceMoments.empty(MapPlace.parse("mlp1"), 64)
    moments.add(Activations(h, f, y, x))
    read, before = (np.hstack([part, np.ones((51, 1))]) for part in (h, y))
    assert moments.folded is not None and moments.between is not None
    close(moments.mapped.gram, read.T @ np.diag(weights) @ read)
    close(moments.mapped.cross, read.T @ np.diag(weights) @ f)
    close(moments.folded.gram, before.T @ np.diag(weights) @ before)
    close(moments.between, read.T @ np.diag(weights) @ y)
    assert moments.energy == pytest.approx(np.square(lengths[1:]).sum() + longest**2)
    assert gathering.token_weights(np.zeros((3, 4))).tolist() == [1, 1, 1]


def test_the_last_sequences_are_held_back() -> None:
    wanted = {2: [1], 7: [6], 8: [7], 24: [21, 22, 23], 48: [*range(42, 48)], 64: [*range(56, 64)]}
    assert {samples: list(gathering.held_back(samples)) for samples in wanted} == wanted
    assert list(gathering.held_back(2000)) == list(range(1992, 2000))


def test_activations_that_are_not_finite_are_refused_by_layer(tmp_path: Path) -> None:
    reference = Reference(tiny.checkpoint(tmp_path, num_hidden_layers=4))
    with torch.no_grad():
        reference.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"the activations of layer 1 \(mlp\) are not finite"):
        gathering.gather(reference, TOKENS, [MapPlace.parse("mlp1")], lambda: None)
    with pytest.raises(UserError, match=r"the activations of layers 1-2 \(block\) are not finite"):
        gathering.gather(reference, TOKENS, [MapPlace.parse("block1-2")], lambda: None)
    with pytest.raises(UserError, match="at least two sequences"):
        gathering.gather(reference, TOKENS[:1], PLACES, lambda: None)


@pytest.mark.parametrize("room", [1.0, 0.0])
def test_sums_on_a_device_are_those_of_the_host(
    room: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU stands for the GPU; where that lacks the room, the host sums up."""
    reference = Reference(tiny.checkpoint(tmp_path, num_hidden_layers=4))
    wanted = gathering.gather(reference, TOKENS, PLACES, lambda: None)
    needed = sum(gathering.device_bytes(64, place.name != "attn0") for place in PLACES)
    made: list[Any] = []
    real = gathering.DeviceSums
    monkeypatch.setattr(gathering, "DeviceSums", lambda *sizes: made.append(sizes) or real(*sizes))
    monkeypatch.setattr(gathering.devices, "free_bytes", lambda _: needed / gathering.SHARE - 1 + room)
    got = gathering.gather(reference, TOKENS, PLACES, lambda: None)
    assert made == ([(64, place.name != "attn0", "cpu") for place in PLACES] if room else [])
    for place in PLACES:
        one, other = got[place], wanted[place]
        pairs = [(one.mapped.gram, other.mapped.gram), (one.mapped.cross, other.mapped.cross)]
        if one.folded is not None and other.folded is not None:
            pairs += [(one.folded.gram, other.folded.gram), (one.folded.cross, other.folded.cross)]
            pairs += [(one.between, other.between)]
        for ours, theirs in pairs:
            np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10 * float(np.abs(theirs).max()))
        assert (one.energy, one.stream, len(pairs)) == (
            other.energy,
            other.stream,
            2 if place.name == "attn0" else 5,
        )
