"""The stage: the overlay is right on transformers' own model, is found again, and bad input is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pipeline import store
from pipeline.calib.compensation import compensate as stage
from pipeline.calib.compensation import forms, gathering, trial, workbench
from pipeline.calib.compensation.compensate import Means, compensate, record_of
from pipeline.models import texts
from pipeline.models.checkpoint import Checkpoint, open_checkpoint
from pipeline.models.quantisation import files
from pipeline.models.quantisation.names import Quantisation
from pipeline.models.reference import Reference
from pipeline.store.records import CompensationSettings
from pipeline.types import SkipSet, UserError
from tests import quantised, tiny

SMALL: dict[str, Any] = {"samples": 24, "length": 16}


def made(checkpoint: Checkpoint, skip: str, form: str, **more: Any) -> Path:
    means = {name: more.pop(name) for name in list(more) if name in Means.__dataclass_fields__}
    settings = CompensationSettings(form=form, **{**SMALL, **more})
    return compensate(checkpoint, SkipSet.parse(skip), settings, means=Means(**means))


def logits_by_hooks(folder: Path, skip: SkipSet, overlay: Path, ids: torch.Tensor) -> torch.Tensor:
    """Of transformers' own Llama, whose skipped sublayers give what the overlay's tensors say."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tensors = load_file(overlay)

    def mapped(place: str, h: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(h)
        if f"compensation.{place}.factor0" in tensors:
            out = h @ tensors[f"compensation.{place}.factor0"].float()
        if f"compensation.{place}.factor1" in tensors:
            out = out @ tensors[f"compensation.{place}.factor1"]
        return out + tensors[f"compensation.{place}.bias"] if f"compensation.{place}.bias" in tensors else out

    runs = {n.split(".")[1] for n in tensors if n.startswith("compensation.block")}
    for run in runs:
        first = run.removeprefix("block").partition("-")[0]
        start = model.model.layers[int(first)].register_forward_pre_hook
        start(
            lambda _m, args, kwargs, run=run: (
                (args[0] + mapped(run, args[0]), *args[1:]) if args else args,
                kwargs if args else {**kwargs, "hidden_states": kwargs["hidden_states"]},
            ),
            with_kwargs=True,
        )
    for layer, block in enumerate(model.model.layers):
        if (layer, "attn") in skip:
            block.self_attn.register_forward_hook(
                lambda _m, args, kwargs, out, p=f"attn{layer}": (
                    mapped(p, kwargs["hidden_states"] if not args else args[0]),
                    *out[1:],
                ),
                with_kwargs=True,
            )
        if (layer, "mlp") in skip:
            block.mlp.register_forward_hook(lambda _m, args, out, p=f"mlp{layer}": mapped(p, args[0]))
    weights = {name: t.float() for name, t in tensors.items() if not name.startswith("compensation.")}
    model.load_state_dict(weights, strict=False)
    with torch.inference_mode():
        return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("form", ["bias", "rank4", "linear", "fold", "fold+rank4"])
def test_the_overlay_is_right_on_transformers_own_model(checkpoint: Checkpoint, form: str) -> None:
    skip = SkipSet((0, 2), (1, 2))
    overlay = made(checkpoint, skip.name, form)
    assert overlay == checkpoint.folder / f"attn0_2+mlp1-2~{form}.safetensors"
    ids = np.random.default_rng(2).integers(3, 300, (2, 20))
    reference = Reference(checkpoint.folder, skip, overlays=[overlay])
    got = reference.forward(ids, np.ones_like(ids), np.arange(20)[None].repeat(2, axis=0))[0]
    wanted = logits_by_hooks(checkpoint.folder, skip, overlay, torch.from_numpy(ids)).numpy()
    assert np.abs(got - wanted).max() < 1e-4 * np.sqrt(np.square(wanted).mean())
    record = record_of(overlay)
    held_out = torch.from_numpy(texts.cut(checkpoint.folder, texts.OWN, 16, 40)[0][24:])
    with torch.inference_mode():
        loss = float(reference.model(input_ids=held_out, labels=held_out, use_cache=False).loss)
        base = Reference(checkpoint.folder).model(input_ids=held_out, labels=held_out, use_cache=False).loss
        none = Reference(checkpoint.folder, skip).model(input_ids=held_out, labels=held_out, use_cache=False)
    assert record.losses.compensated == pytest.approx(loss, abs=1e-4)
    assert record.losses.base == pytest.approx(float(base), abs=1e-4)
    assert record.losses.none == pytest.approx(float(none.loss), abs=1e-4)
    sizes = [t.numel() for name, t in load_file(overlay).items() if name.startswith("compensation.")]
    assert record.parameters == sum(sizes)


def test_a_model_whose_mlp_is_linear_is_compensated_whole(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With gate weights of nought and gate biases of one, Llama's MLP is down(silu(1) · up(h))."""
    settings = {"vocab_size": tiny.WORDS, "num_hidden_layers": 4, "mlp_bias": True, "num_attention_heads": 4}
    folder = tiny.tokenizer(tiny.checkpoint(workdir / "graphs" / "linear", "llama", **settings))
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate_proj.weight.zero_()
            layer.mlp.gate_proj.bias.fill_(1.0)
    model.save_pretrained(folder)
    monkeypatch.setattr(forms, "RIDGES", (1e-9,) * 3)
    losses = record_of(made(open_checkpoint(folder), "mlp1_3", "linear")).losses
    assert abs(losses.none - losses.base) > 0.01
    assert losses.compensated == pytest.approx(losses.base, abs=1e-5)


def test_it_is_found_again_and_made_again_where_it_is_not_whole(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    overlay = made(checkpoint, "mlp2", "rank4")
    before = overlay.stat().st_mtime_ns
    with monkeypatch.context() as shut:
        shut.setattr(workbench, "Reference", None)  # nothing is run
        assert made(checkpoint, "mlp2", "rank4") == overlay and overlay.stat().st_mtime_ns == before
    content = overlay.read_bytes()
    overlay.write_bytes(content[:-1])
    made(checkpoint, "mlp2", "rank4")
    assert overlay.read_bytes() == content
    made(checkpoint, "mlp2", "rank4", samples=25)
    assert overlay.read_bytes() != content and record_of(overlay).settings.samples == 25


def test_maps_of_quantised_weights_are_those_of_a_checkpoint_that_holds_them(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And apart from the maps, moments and losses of the model's own weights, neither voiding the other."""
    source = quantised.model(workdir, vocab_size=tiny.WORDS)
    tiny.tokenizer(source.folder)
    file = files.ensure(source, Quantisation(4, 32))
    ours, own = made(source, "mlp1", "linear", quantisation="int4-b32"), made(source, "mlp1", "linear")
    assert (ours.name, own.name) == ("mlp1~linear.int4-b32.safetensors", "mlp1~linear.safetensors")
    plain = workdir / "graphs" / "plain"
    shutil.copytree(source.folder, plain, ignore=shutil.ignore_patterns("quantised*", "mlp1~*"))
    tensors = load_file(plain / "model.safetensors")
    for name, weight in files.dequantised(file):
        tensors[name] = torch.from_numpy(weight.T.copy())
    save_file(tensors, plain / "model.safetensors", {"format": "pt"})
    theirs = made(open_checkpoint(plain), "mlp1", "linear")
    wanted, found, others = load_file(theirs), load_file(ours), load_file(own)
    for name, tensor in wanted.items():
        assert torch.allclose(found[name], tensor, rtol=1e-4, atol=1e-7)
        assert not torch.allclose(others[name], tensor, rtol=1e-2, atol=1e-4)
    assert record_of(ours).quantised == store.sha256(file) and record_of(own).quantised is None
    assert record_of(ours).losses == record_of(theirs).losses != record_of(own).losses
    moments = workdir / "calib" / "m" / "moments"
    assert (moments / "mlp1.safetensors").is_file() and (moments / "int4-b32-rtn/mlp1.safetensors").is_file()
    monkeypatch.setattr(workbench, "Reference", None)  # is not opened
    assert made(source, "mlp1", "linear", quantisation="int4-b32") == ours
    assert made(source, "mlp1", "linear") == own


def test_an_overlay_may_lie_elsewhere(checkpoint: Checkpoint, workdir: Path) -> None:
    (workdir / "graphs" / "other").mkdir()
    overlay = made(checkpoint, "attn1", "bias", folder=workdir / "graphs" / "other")
    assert overlay == workdir / "graphs" / "other" / "attn1~bias.safetensors"
    assert record_of(overlay).model == "tiny" and record_of(overlay).variant == "attn1"


def test_auto_takes_the_lowest_loss_on_held_back_text_within_its_budget(checkpoint: Checkpoint) -> None:
    overlay = made(checkpoint, "mlp1-2", "auto", budget_params=3000)
    chosen = record_of(overlay)
    assert chosen.parameters <= 3000 and chosen.settings.form in ("bias", "fold", "fold+rank16", "rank16")
    answer = stage.records.read(stage.AutoRecord, Path("calib/tiny/compensation/mlp1-2.auto.json"))
    assert answer.chosen == chosen.settings.form == answer.tried[0][0]
    losses = [loss for _, _, loss, _ in answer.tried]
    assert losses == sorted(losses) and {form for form, *_ in answer.tried} == {"bias", "fold"}
    text = stage.moment_files.MomentsText.cut(checkpoint, texts.OWN, 24, 16)
    bench = workbench.Workbench(checkpoint, SkipSet.parse("mlp1-2"), text)
    own = trial.Trial(bench.reference, text.held_back).loss(bench.plan(answer.chosen).overlay)
    assert own == pytest.approx(losses[0])
    with pytest.raises(UserError, match="--budget-params 100 holds not even a bias"):
        made(checkpoint, "mlp1-2", "auto", budget_params=100)


def test_auto_keeps_a_time(checkpoint: Checkpoint) -> None:
    asked: list[str] = []

    def milliseconds(overlay: Path, form: str) -> float:
        assert overlay.is_file()
        asked.append(form)
        return 9.0 if len(asked) < 3 else 4.0

    overlay = made(checkpoint, "mlp1", "auto", budget_ms=5.0, milliseconds=milliseconds)
    assert len(asked) == 3 and overlay.name == f"mlp1~{asked[2]}.safetensors"
    assert {path.name for path in checkpoint.folder.glob("mlp1~*.safetensors")} == {
        f"mlp1~{form}.safetensors" for form in asked
    }
    assert made(checkpoint, "mlp1", "auto", budget_ms=5.0, milliseconds=milliseconds) == overlay
    assert len(asked) == 3  # known
    made(checkpoint, "mlp1", "auto", budget_ms=5.0, milliseconds=milliseconds, timed_on="another graph")
    assert len(asked) == 4  # times of one graph or machine say nothing of another's
    chosen = made(checkpoint, "mlp1", "auto", folds=False)
    assert "fold" not in chosen.stem
    with pytest.raises(UserError, match=r"no compensation of mlp2 keeps --budget-ms 5: \S+ 8\.00 ms, "):
        made(checkpoint, "mlp2", "auto", budget_ms=5.0, milliseconds=lambda *_: 8.0)


def test_bad_input(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "gather", None)  # all of it is refused before anything is run
    monkeypatch.setattr(workbench, "Reference", None)
    refused = [
        (("base", "linear"), {}, "base skips nothing"),
        (("mlp9", "linear"), {}, "layer 9 does not exist"),
        (("mlp1", "cubic"), {}, "no compensation 'cubic'; choose from bias, linear, matrix, rank16"),
        (("mlp1", "rank65"), {}, "a rank of 65 is not between 1 and the hidden size 64"),
        (("mlp1", "linear"), {"samples": 5}, "needs 128: take --samples 10"),
        (("mlp1", "linear"), {"budget_params": 5}, "are for --with auto"),
        (("mlp1", "auto"), {"budget_ms": 5.0}, "needs a graph that is timed"),
        (("mlp1", "linear"), {"moments": Path("none")}, r"^none has no moments of mlp1 \(mlp1\.json\)"),
    ]
    for (skip, form), more, message in refused:
        with pytest.raises(UserError, match=message):
            made(checkpoint, skip, form, **more)
    assert not list(checkpoint.folder.glob("*~*")) and not Path("calib/tiny/moments").exists()


def test_post_norm_models_have_no_fold(workdir: Path) -> None:
    settings = {"vocab_size": tiny.WORDS, "num_hidden_layers": 3}
    folder = tiny.tokenizer(tiny.checkpoint(workdir / "graphs" / "post", "olmo2", **settings))
    with pytest.raises(UserError, match=r"no sublayer of mlp1 can be folded .a norm stands behind"):
        made(open_checkpoint(folder), "mlp1", "fold")
    assert not list(folder.glob("*~*"))
    losses = record_of(made(open_checkpoint(folder), "mlp1", "linear")).losses
    assert np.isfinite(losses.compensated)


def test_another_tokenizer_makes_other_moments_losses_and_maps(checkpoint: Checkpoint) -> None:
    """The same text is other tokens to it: nothing of the old ones may stand."""
    first = record_of(made(checkpoint, "mlp1", "bias"))
    file = checkpoint.folder / "tokenizer.json"
    words = json.loads(file.read_text())
    words["model"]["merges"] = words["model"]["merges"][:5]
    file.write_text(json.dumps(words))
    again = record_of(made(open_checkpoint(checkpoint.folder), "mlp1", "bias"))
    assert again.texts.ids != first.texts.ids and again.texts.sha256 == first.texts.sha256
    assert again.losses.base != first.losses.base and again.losses.none != first.losses.none


def test_what_several_variants_need_is_gathered_in_one_pass(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their compensations gather nothing then, runs of whole layers included."""
    passes: list[list[str]] = []
    whole = gathering.gather

    def counted(reference: Reference, tokens: texts.Tokens, places: Any, tick: Any) -> Any:
        passes.append([place.name for place in places])
        return whole(reference, tokens, places, tick)

    monkeypatch.setattr(gathering, "gather", counted)
    skips = [SkipSet.parse(name) for name in ("attn1+mlp2", "block2-3")]
    for _ in range(2):
        stage.gather(checkpoint, skips, CompensationSettings(form="linear", **SMALL))
    (places,) = passes
    assert set(places) == {"attn1", "mlp2", "attn2", "attn3", "mlp3", "block2-3"}
    for skip in skips:
        made(checkpoint, skip.name, "linear")
    assert len(passes) == 1
