"""Similarity statistics: against a plain recomputation, an analytic model, and through every way a run can end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.calib import calibrate, measures, similarity, streams
from pipeline.engines import taps
from pipeline.graphs import export
from pipeline.models import checkpoint, texts
from pipeline.types import UserError
from tests import tiny

LAYERS, SAMPLES, LENGTH, BUCKETS = 4, 6, 24, 3


@pytest.fixture
def folder(workdir: Path) -> Path:
    tiny.checkpoint(workdir / "models" / "tiny", vocab_size=tiny.WORDS, num_hidden_layers=LAYERS)
    tiny.tokenizer(workdir / "models" / "tiny")
    return checkpoint.resolve("models/tiny").folder


def measured(folder: Path, **options) -> similarity.Similarity:
    numbers = {"samples": SAMPLES, "length": LENGTH, "buckets": BUCKETS}
    settings = calibrate.CalibrationSettings(**{name: options.pop(name, n) for name, n in numbers.items()})
    calibrate.calibrate(folder, options.pop("text_input", texts.OWN), settings, **options)
    return similarity.of_checkpoint(folder)


def test_every_number_is_that_of_a_plain_recomputation(folder: Path) -> None:
    """From transformers' own hidden states, kept whole, with numpy and loops."""
    found = measured(folder)
    tokens, _ = texts.cut(folder, texts.OWN, LENGTH, SAMPLES)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    middles: dict[int, torch.Tensor] = {}
    for k, layer in enumerate(model.model.layers):
        layer.post_attention_layernorm.register_forward_pre_hook(
            lambda _, args, k=k: middles.__setitem__(k, args[0])
        )
    outer: list[torch.Tensor] = []
    model.model.norm.register_forward_pre_hook(
        lambda _, args: outer.append(args[0])
    )  # the last hidden state comes out normed
    cosines = {name: np.zeros((SAMPLES, LAYERS, LENGTH)) for name in ("layer", "attn", "mlp")}
    angles = np.zeros((SAMPLES, LENGTH, LAYERS + 1, LAYERS + 1))
    for n, row in enumerate(tokens):
        with torch.inference_mode():
            states = model(torch.tensor(row)[None], output_hidden_states=True).hidden_states
        x = [s[0].double().numpy() for s in (*states[:-1], outer[-1])]
        m = [middles[k][0].double().numpy() for k in range(LAYERS)]
        cos = lambda a, b: (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)  # noqa: E731
        for k in range(LAYERS):
            cosines["layer"][n, k], cosines["attn"][n, k] = cos(x[k], x[k + 1]), cos(x[k], m[k])
            cosines["mlp"][n, k] = cos(m[k], x[k + 1])
        for a in range(LAYERS + 1):
            for b in range(LAYERS + 1):
                angles[n, :, a, b] = np.arccos(np.clip(cos(x[a], x[b]), -1, 1)) / np.pi
    size = LENGTH // BUCKETS
    for name, values in cosines.items():
        split = values.reshape(SAMPLES, LAYERS, BUCKETS, size).mean(-1).transpose(0, 2, 1)
        np.testing.assert_allclose(found.mean[f"cosine_{name}"], split.mean(0), atol=1e-5)
        np.testing.assert_allclose(
            found.stderr[f"cosine_{name}"], split.std(0, ddof=1) / SAMPLES**0.5, atol=1e-5
        )
    off = ~np.eye(LAYERS + 1, dtype=bool)  # arccos at 1 turns rounding into 1e-4
    np.testing.assert_allclose(found.distances()[off], angles[:, -1].mean(0)[off], atol=1e-5)
    np.testing.assert_allclose(
        found.stderr["angular"][off], (angles[:, -1].std(0, ddof=1) / SAMPLES**0.5)[off], atol=1e-5
    )
    np.testing.assert_allclose(found.distances("mean")[off], angles.mean((0, 1))[off], atol=1e-5)


def test_a_model_whose_layers_turn_the_stream_by_a_known_angle(workdir: Path) -> None:
    """x + r(R − 1)·x/r = R·x: attention adds a rotation by θ, the MLP nothing; d(ℓ, n) = nθ/π, folded at 1."""
    source = tiny.checkpoint(
        workdir / "models" / "turn",
        vocab_size=tiny.WORDS,
        num_hidden_layers=5,
        num_key_value_heads=4,
        head_dim=16,
    )
    tiny.tokenizer(source)
    model = AutoModelForCausalLM.from_pretrained(source)
    theta, size = 0.9, 64
    turn = np.kron(np.eye(size // 2), [[np.cos(theta), -np.sin(theta)], [np.sin(theta), np.cos(theta)]])
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        embedding.copy_(embedding / embedding.norm(dim=1, keepdim=True) * size**0.5)  # every token's rms is 1
        for layer in model.model.layers:
            layer.input_layernorm.weight.fill_(1)
            layer.self_attn.v_proj.weight.copy_(torch.eye(size))
            layer.self_attn.o_proj.weight.copy_(torch.tensor(turn - np.eye(size)))
            layer.mlp.down_proj.weight.zero_()
    model.save_pretrained(source)
    folder = checkpoint.resolve("models/turn").folder
    Path("a.txt").write_text("aaaaaaaa " * 200)  # equal tokens: attention averages equal values
    stream = streams.torch_streams(folder)
    row = np.full(16, 40)
    values = measures.measure(*stream(row), 2)
    np.testing.assert_allclose(values["cosine_attn"], np.cos(theta), atol=1e-4)
    np.testing.assert_allclose(values["cosine_mlp"], 1, atol=1e-6)
    for n in range(6):
        expected = np.arccos(np.cos(n * theta)) / np.pi
        np.testing.assert_allclose(np.diag(values["angular"], n), expected, atol=1e-3 if n == 0 else 1e-4)


def test_a_graph_shows_the_same_stream(folder: Path) -> None:
    base = export.export_base(checkpoint.open_checkpoint(folder))
    one, other = measured(folder), measured(folder, graph=base, graph_streams=taps.graph_streams, force=True)
    for name in ("cosine_layer", "cosine_attn", "cosine_mlp"):
        np.testing.assert_allclose(one.mean[name], other.mean[name], atol=1e-4)
    assert other.record.runner == "../../graphs/tiny/base.fp32.onnx"


def test_a_stopped_run_goes_on_and_a_finished_one_does_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measured(folder)
    monkeypatch.setattr(calibrate, "SAVED_EVERY", 0.0)
    real, seen = measures.measure, [0]

    def dying(*arguments):
        seen[0] += 1
        if seen[0] == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(measures, "measure", dying)
    with pytest.raises(KeyboardInterrupt):
        measured(folder, force=True)
    again = measured(folder, force=True)
    assert seen[0] == 4 + SAMPLES - 3 and not list(Path("calib/tiny").glob("*.partial.*"))
    for name in measures.MEASURES:
        np.testing.assert_allclose(again.mean[name], whole.mean[name], atol=1e-12)
        np.testing.assert_allclose(again.stderr[name], whole.stderr[name], atol=1e-9)
    measured(folder)
    assert seen[0] == 4 + SAMPLES - 3
    assert (
        measured(folder, samples=SAMPLES - 1).record.samples == SAMPLES - 1
    )  # other settings are another run


def test_text_from_files_is_named_and_digested(folder: Path) -> None:
    Path("a.txt").write_text("The grass of the field is green and the sky is blue. " * 60)
    Path("b.jsonl").write_text(json.dumps({"text": "Once upon a time there was a river. " * 60}) + "\n")
    found = measured(folder, text_input=texts.TextInput((Path("a.txt"), Path("b.jsonl"))))
    assert (
        found.record.texts.origin == ("../../a.txt", "../../b.jsonl")
        and len(found.record.texts.sha256 or "") == 64
    )
    assert found.record.tokens == SAMPLES * LENGTH


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no text"),
        ("too short", "needs more"),
        ("a few words more than one piece. " * 9, "fills . sequences"),
        (None, "does not exist"),
    ],
)
def test_too_little_text_is_said(text: str | None, message: str, folder: Path) -> None:
    if text is not None:
        Path("a.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        measured(folder, text_input=texts.TextInput((Path("a.txt"),)), samples=40)


def test_bad_files_and_bad_models(folder: Path, workdir: Path) -> None:
    with pytest.raises(UserError, match="make them with `pipeline calibrate tiny`"):
        similarity.of_checkpoint(folder)
    measured(folder)
    json_path, npz_path = similarity.paths(Path("calib/tiny"))
    record = json.loads(json_path.read_text())
    json_path.write_text(json.dumps({**record, "weights": "other"}))
    with pytest.raises(UserError, match="other weights"):
        similarity.of_checkpoint(folder)
    json_path.write_text(json.dumps(record))
    npz_path.write_bytes(npz_path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"is not what similarity\.json describes"):
        similarity.of_checkpoint(folder)
    (workdir / "b.jsonl").write_text('{"text": "x"}\n{"txt": "y"}\n')
    with pytest.raises(UserError, match=r"b\.jsonl, line 2"):
        measured(folder, text_input=texts.TextInput((Path("b.jsonl"),)))
    with pytest.raises(UserError, match="at least 2"):
        measured(folder, length=1)
    poisoned = tiny.checkpoint(workdir / "models" / "poisoned", vocab_size=tiny.WORDS)
    tiny.tokenizer(poisoned)
    model = AutoModelForCausalLM.from_pretrained(poisoned)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    model.save_pretrained(poisoned)
    with pytest.raises(UserError, match="sequence 0 are not finite"):
        measured(checkpoint.resolve("models/poisoned").folder)
