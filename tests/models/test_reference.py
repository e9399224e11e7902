"""The reference proved without itself.

A sublayer whose last weight is zero gives what skipping it gives. A map gives what hooks on transformers' own
model put in the place of a sublayer's output.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pipeline.models import compensation, devices, pretrained
from pipeline.models.compensation import MapPlace
from pipeline.models.reference import Reference
from pipeline.models.sizes import rules_of
from pipeline.types import SkipSet, UserError
from tests import overlays, tiny

LAST = {
    "phi": ("self_attn.dense", "mlp.fc2"),
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h"),
    "qwen": ("attn.c_proj", "mlp.c_proj"),
}
USUAL = ("self_attn.o_proj", "mlp.down_proj")


def batch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three rows of 12 tokens: padded left, padded in the middle, whole."""
    ids = np.random.default_rng(0).integers(3, 96, (3, 12))
    mask = np.ones_like(ids)
    mask[0, :4] = mask[1, 5:8] = 0
    return ids, mask, np.maximum(mask.cumsum(1) - 1, 0)


def zeroed(folder: Path, model_type: str, skip: SkipSet) -> torch.nn.Module:
    """The model as transformers runs it, every skipped sublayer with zeros in its output projection."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    attention, mlp = LAST.get(model_type, USUAL)
    for name, parameter in model.named_parameters():
        for layers, last in ((skip.attention, attention), (skip.mlp, mlp)):
            if any(f"{rules_of(model_type).layers}.{i}.{last}." in name for i in layers):
                parameter.data.zero_()
    return model


@pytest.mark.parametrize("model_type", tiny.DIALECTS)
@pytest.mark.parametrize("skip", ["base", "attn0", "mlp0", "attn1", "block1", "attn0-1", "block0-1"])
def test_skipping_is_what_zeroed_weights_give(model_type: str, skip: str, tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, model_type)
    chosen = SkipSet.parse(skip)
    ids, mask, positions = batch()
    logits, cache = Reference(folder, chosen).forward(ids, mask, positions)
    with torch.no_grad():
        inputs = {"attention_mask": torch.tensor(mask), "position_ids": torch.tensor(positions)}
        truth = zeroed(folder, model_type, chosen)(torch.tensor(ids), use_cache=False, **inputs)
    np.testing.assert_allclose(
        logits[mask == 1], truth.logits.numpy()[mask == 1], rtol=0, atol=1e-6 * np.abs(logits).max()
    )
    assert sorted(cache) == [i for i in range(2) if i not in chosen.attention]
    assert all(
        part.shape[2] == 12 for pair in cache.values() for part in pair
    )  # a sliding window crops no key here
    if chosen:
        whole, _ = Reference(folder).forward(ids, mask, positions)
        assert np.abs(whole - logits)[mask == 1].max() > 1e-2  # the skipped sublayer did something


@pytest.mark.parametrize("gap", [0, 5])
@pytest.mark.parametrize("columns", [[], [0, 3, 11], [7, 8]])
def test_wanted_columns_are_those_of_all(columns: list[int], gap: int, tmp_path: Path) -> None:
    """The head is asked for these positions alone; keys and values are the same."""
    reference = Reference(tiny.checkpoint(tmp_path, "gemma3_text"))
    ids, positions = np.random.default_rng(0).integers(3, 96, (2, 12)), np.arange(12)[None].repeat(2, 0)
    mask = np.ones((2, 12 + gap), np.int64)
    mask[:, 8 : 8 + gap] = 0
    whole, cache = reference.forward(ids, mask, positions, 8)
    widths = []
    hook = reference.model.lm_head.register_forward_pre_hook(lambda _, args: widths.append(args[0].shape[1]))
    some, same = reference.forward(ids, mask, positions, 8, columns)
    hook.remove()
    np.testing.assert_allclose(some, whole[:, columns], rtol=1e-5, atol=1e-6)
    assert sum(widths) == len(columns)
    assert all((a == b).all() for i in cache for a, b in zip(cache[i], same[i], strict=True))


@pytest.mark.parametrize("model_type", ["llama", "phi", "olmo2", "granite", "smollm3"])
def test_residuals_are_the_stream(model_type: str, tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, model_type)
    reference = Reference(folder, SkipSet(attention=(1,)))
    ids, mask, positions = batch()
    streams, branches, entering = reference.trace(ids, mask, positions)
    assert list(streams) == [(0, "attn"), (0, "mlp"), (1, "mlp")]
    stream = entering
    for (
        part,
        after,
    ) in streams.items():  # each sublayer's stream is the one before it plus what the sublayer gives
        stream = stream + branches[part]
        np.testing.assert_allclose(after, stream, rtol=0, atol=1e-5)
    norm = reference.model.get_submodule(rules_of(model_type).final_norm)
    with torch.no_grad():
        head = reference.model.lm_head(norm(torch.tensor(streams[(1, "mlp")]))).numpy()
    head /= getattr(reference.model.config, "logits_scaling", 1)
    np.testing.assert_allclose(head, reference.forward(ids, mask, positions)[0], rtol=0, atol=1e-5)
    assert {part: after.shape for part, after in streams.items()} == dict.fromkeys(streams, (3, 12, 64))


def test_residuals_of_other_builders(tmp_path: Path) -> None:
    """GPT-NeoX and OPT name their sublayers otherwise; OPT's MLP is two linears of the layer itself."""
    from transformers import AutoConfig

    common = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 96,
        "max_position_embeddings": 64,
    }
    for model_type, more in (
        ("gpt_neox", {"intermediate_size": 48}),
        ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    ):
        folder = tmp_path / model_type
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **common, **more)).save_pretrained(
            folder
        )
        streams, branches, stream = Reference(folder, SkipSet((0,), (1,))).trace(*batch())
        assert list(streams) == [(0, "mlp"), (1, "attn")]
        for part, after in streams.items():
            stream = stream + branches[part]
            np.testing.assert_allclose(after, stream, rtol=0, atol=1e-5)


def test_generate_is_greedy_also_without_the_attention_of_layer_0(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, "llama", eos_token_id=None)
    (folder / "generation_config.json").write_text(
        '{"do_sample": true, "temperature": 3.0, "repetition_penalty": 9.0}'
    )
    for skip in (SkipSet(), SkipSet((0,)), SkipSet((0, 1), (0, 1))):
        reference = Reference(folder, skip)
        ids = [5, 17, 40]
        for _ in range(6):
            row = np.array([ids])
            ids.append(
                int(reference.forward(row, np.ones_like(row), np.arange(len(ids))[None])[0][0, -1].argmax())
            )
        assert reference.generate([5, 17, 40], 6) == ids[3:]


def test_fp16_reference_runs_in_fp16(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, "llama")
    full, _ = Reference(folder).forward(*batch())
    half, cache = Reference(folder, dtype="fp16").forward(*batch())
    mask = batch()[1]
    assert half.dtype == np.float16 and cache[0][0].dtype == np.float16
    assert 0 < np.abs(half - full)[mask == 1].max() < 1e-2 * np.abs(full).max()


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        Reference(tmp_path)
    with pytest.raises(UserError, match="layer 7 does not exist"):
        Reference(tiny.checkpoint(tmp_path / "tiny"), SkipSet((7,)))


def by_hooks(folder: Path, model_type: str, overlay: Path) -> np.ndarray:
    """Logits of the whole original model; hooks put what maps give in the place of its sublayers' outputs."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    rules, tensors, read = rules_of(model_type), load_file(overlay), dict[MapPlace, torch.Tensor]()

    def mapped(place: MapPlace, x: torch.Tensor) -> torch.Tensor:
        y = x * 0 if place.tensor("factor0") not in tensors else x
        for part in ("factor0", "factor1"):
            y = y @ tensors[place.tensor(part)] if place.tensor(part) in tensors else y
        return y + tensors[place.tensor("bias")]

    def keep(place: MapPlace) -> Any:
        return lambda _, args, kwargs: read.update({place: args[0] if args else kwargs["hidden_states"]})

    def put(place: MapPlace, factor: float) -> Any:
        def hook(_: Any, _args: Any, output: Any) -> Any:
            new = mapped(place, read[place]) / factor
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return hook

    def moved(place: MapPlace) -> Any:
        def hook(_: Any, args: Any, kwargs: Any) -> Any:
            x = args[0] if args else kwargs.pop("hidden_states")
            read[place] = x + mapped(place, x)
            return (read[place], *args[1:]), kwargs

        return hook

    def unchanged(place: MapPlace) -> Any:
        return lambda _, _args, output: (
            (read[place], *output[1:]) if isinstance(output, tuple) else read[place]
        )

    for place in compensation.places(tensors, overlay):
        layers = [model.get_submodule(f"{rules.layers}.{i}") for i in range(place.first, place.last + 1)]
        if place.kind == "block":
            layers[0].register_forward_pre_hook(moved(place), with_kwargs=True)
            for layer in layers:
                layer.register_forward_hook(unchanged(place))
            continue
        names = ("self_attn", "attention", "attn") if place.kind == "attn" else ("mlp",)
        sublayer = next(getattr(layers[0], name) for name in names if hasattr(layers[0], name))
        sublayer.register_forward_pre_hook(keep(place), with_kwargs=True)
        after = rules.norms(place.kind)[1]  # type: ignore[arg-type]
        last = getattr(layers[0], after) if after else sublayer
        last.register_forward_hook(put(place, getattr(model.config, "residual_multiplier", 1.0)))
    ids, mask, positions = (torch.tensor(array) for array in batch())
    with torch.no_grad():
        inputs = {"attention_mask": mask, "position_ids": positions, "use_cache": False}
        return np.asarray(model.eval()(ids, **inputs).logits)


@pytest.mark.parametrize("model_type", tiny.DIALECTS)
@pytest.mark.parametrize("form", ["linear", "rank4", "bias", "run"])
def test_maps_are_what_hooks_on_the_original_model_give(model_type: str, form: str, tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path / "m", model_type, num_hidden_layers=4)
    skip = SkipSet((1, 2), (1, 2)) if form == "run" else SkipSet((0, 2), (1, 2))
    overlay = overlays.of_form(folder, skip, form)
    mask = batch()[1]
    logits = Reference(folder, skip, overlays=[overlay]).forward(*batch())[0][mask == 1]
    truth = by_hooks(folder, model_type, overlay)[mask == 1]
    assert np.abs(logits - truth).max() / np.sqrt((truth**2).mean()) < 1e-5
    none = Reference(folder, skip).forward(*batch())[0][mask == 1]
    assert np.abs(logits - none).max() > 1e-2 * np.abs(truth).max()


def test_a_bias_stands_for_a_sublayer_that_gives_a_constant(tmp_path: Path) -> None:
    """Phi's second MLP matrix of zeros: what is left of the MLP is its bias, and the model loses nothing."""
    folder = tiny.checkpoint(tmp_path, "phi")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.fc2.weight"].zero_()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    place, skip = MapPlace.of((1, "mlp")), SkipSet((), (1,))
    save_file(
        {place.tensor("bias"): weights["model.layers.1.mlp.fc2.bias"]}, overlay := folder / "o.safetensors"
    )
    whole, _ = Reference(folder).forward(*batch())
    logits, _ = Reference(folder, skip, overlays=[overlay]).forward(*batch())
    np.testing.assert_allclose(logits, whole, rtol=0, atol=1e-6 * np.abs(whole).max())


def test_the_trace_adds_up_with_maps(tmp_path: Path) -> None:
    """The stream after each map is the one before it and what the map gives; a run's map stands by itself."""
    folder = tiny.checkpoint(tmp_path / "m", "granite", num_hidden_layers=4)
    skip = SkipSet((1, 2), (1, 2))
    reference = Reference(folder, skip, overlays=[overlays.of_form(folder, skip, "linear")])
    streams, branches, stream = reference.trace(*batch())
    assert list(streams) == [(i, kind) for i in range(4) for kind in ("attn", "mlp")]
    for part, after in streams.items():
        stream = stream + branches[part]
        np.testing.assert_allclose(after, stream, rtol=0, atol=1e-4)
    skip = SkipSet((0, 1), (0, 1))
    overlay = overlays.of_form(folder, skip, "run")
    streams, branches, stream = Reference(folder, skip, overlays=[overlay]).trace(*batch())
    assert list(branches) == [(i, kind) for i in (2, 3) for kind in ("attn", "mlp")]
    place, parts = MapPlace(0, 1, "block"), load_file(overlay)
    moved = stream + stream @ parts[place.tensor("factor0")].numpy() + parts[place.tensor("bias")].numpy()
    np.testing.assert_allclose(streams[0, "mlp"], moved, rtol=0, atol=1e-5)


def test_an_overlay_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path / "one")
    other = tiny.checkpoint(tmp_path / "two", hidden_size=32)
    overlay = overlays.of_form(other, SkipSet((1,)), "linear")
    with pytest.raises(
        UserError, match="the map for attn1 has 32 outputs, and the model's hidden size is 64"
    ):
        Reference(folder, SkipSet((1,)), overlays=[overlay])
    with pytest.raises(UserError, match="has a map for attn1, which mlp1 does not leave out"):
        Reference(other, SkipSet((), (1,)), overlays=[overlay])


def test_a_device_that_pytorch_lacks_is_refused_before_a_weight_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UserError, match="is built without CUDA"):
        Reference(tmp_path / "nothing", device="cuda")


def test_the_model_and_its_inputs_are_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's `meta` stands for CUDA: it has shapes and no values, and takes no tensor of the host."""
    monkeypatch.setattr(devices, "refusal", lambda _: None)
    reference = Reference(tiny.checkpoint(tmp_path), device="meta")  # type: ignore[arg-type]
    assert {parameter.device.type for parameter in reference.model.parameters()} == {"meta"}
    moved: list[str] = []
    monkeypatch.setattr(
        torch.Tensor, "cpu", lambda one: moved.append(one.device.type) or torch.zeros(one.shape)
    )
    logits, cache = reference.forward(*batch(), columns=[3])
    assert logits.shape[:2] == (3, 1) and cache[0][0].shape[2] == 12
    assert moved == ["meta"] * (1 + 2 * len(cache))  # what comes back is on the host


def test_weights_that_are_placed_already_are_not_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers refuses to move 4-bit weights, which come with a device map."""
    monkeypatch.setattr(devices, "refusal", lambda _: None)
    load = pretrained.load
    monkeypatch.setattr(pretrained, "load", lambda *args, device_map, **options: load(*args, **options))
    placed = Reference(tiny.checkpoint(tmp_path), load={"device_map": {"": 0}}, device="meta")  # type: ignore[arg-type]
    assert {parameter.device.type for parameter in placed.model.parameters()} == {"cpu"}


def test_bf16_is_computed_in_bf16_and_given_in_fp32(tmp_path: Path) -> None:
    """numpy has no bf16. Of its 8 bits an error of a few per cent is left behind two layers."""
    folder = tiny.checkpoint(tmp_path)
    kept = batch()[1] == 1
    half, whole = (Reference(folder, dtype=dtype) for dtype in ("bf16", "fp32"))  # type: ignore[arg-type]
    assert half.model.dtype == torch.bfloat16
    for one, other in (
        (half.forward(*batch())[0], whole.forward(*batch())[0]),
        *zip(half.trace(*batch())[0].values(), whole.trace(*batch())[0].values(), strict=True),
    ):
        error = np.sqrt(np.mean((one[kept] - other[kept]) ** 2) / np.mean(other[kept] ** 2))
        assert one.dtype == np.float32 and 1e-4 < error < 0.05


@pytest.mark.gpu
@pytest.mark.skipif(devices.refusal("cuda") is not None, reason=str(devices.refusal("cuda")))
def test_cuda_gives_what_the_cpu_gives(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path)
    (logits, cache), (theirs, their_cache) = (
        Reference(folder, device=device).forward(*batch()) for device in ("cuda", "cpu")
    )
    kept = batch()[1] == 1
    assert np.abs(logits[kept] - theirs[kept]).max() < 1e-4
    assert all(np.isfinite(cache[i][0]).all() and cache[i][0].shape == their_cache[i][0].shape for i in cache)
    for one, other in zip(
        *(Reference(folder, device=device).trace(*batch())[0].values() for device in ("cuda", "cpu")),
        strict=True,
    ):
        assert np.abs(one[kept] - other[kept]).max() < 1e-4
