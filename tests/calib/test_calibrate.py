"""The stage: a graph beside PyTorch, a run that was stopped, texts that are too short, broken models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.calib import calibrate, measures, streams
from pipeline.engines import taps
from pipeline.graphs import export
from pipeline.models import checkpoint, texts
from pipeline.types import UserError
from tests import tiny
from tests.interrupted import every_kill
from tests.learning import LENGTH, SAMPLES, measured


def test_a_graph_shows_the_same_stream(folder: Path) -> None:
    base = export.export_base(checkpoint.open_checkpoint(folder))
    one, other = measured(folder), measured(folder, graph=base, graph_streams=taps.graph_streams, force=True)
    for name in ("cosine_layer", "cosine_attn", "cosine_mlp"):
        np.testing.assert_allclose(one.mean[name], other.mean[name], atol=1e-4)
    assert other.record.runner == "../../graphs/tiny/base.fp32.onnx"
    with pytest.raises(UserError, match="--precision bf16 is for --runner torch: a graph has its own"):
        measured(folder, graph=base, graph_streams=taps.graph_streams, precision="bf16")


def test_another_precision_is_another_measurement(folder: Path) -> None:
    whole, half = (measured(folder, precision=precision) for precision in ("fp32", "bf16"))
    assert (whole.record.runner, half.record.runner) == ("torch", "torch bf16")
    for name in ("cosine_layer", "cosine_attn", "cosine_mlp"):
        apart = np.abs(half.mean[name] - whole.mean[name]).max()
        assert 0 < apart < 0.01
    with pytest.raises(UserError, match="--precision is fp32, fp16 or bf16, not 'int8'"):
        measured(folder, precision="int8")


def test_a_config_of_transformers_5_means_the_same(folder: Path) -> None:
    """Its rope_parameters are what version 4 calls rope_theta; transformers 4 by itself takes 10000."""
    file, both = folder / "config.json", []
    said = {k: v for k, v in json.loads(file.read_text()).items() if not k.startswith("rope_")}
    rope = {"rope_type": "default", "rope_theta": 300.0}
    for form in ({"rope_theta": 300.0}, {"rope_parameters": rope, "transformers_version": "5.2.0"}):
        file.write_text(json.dumps({**said, **form}))
        both.append(measured(folder, force=True))
    file.write_text(json.dumps({**said, "rope_theta": 10000.0}))
    wrong = measured(folder, force=True)
    for name in ("cosine_layer", "cosine_attn", "cosine_mlp"):
        np.testing.assert_array_equal(both[0].mean[name], both[1].mean[name])
    assert np.abs(both[0].mean["cosine_attn"] - wrong.mean["cosine_attn"]).max() > 1e-5


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
    statistics = measured(folder, text_input=texts.TextInput((Path("a.txt"), Path("b.jsonl"))))
    assert (
        statistics.record.texts.origin == ("../../a.txt", "../../b.jsonl")
        and len(statistics.record.texts.sha256 or "") == 64
    )
    assert statistics.record.tokens == SAMPLES * LENGTH


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


def test_bad_texts_settings_and_models(folder: Path, workdir: Path) -> None:
    (workdir / "b.jsonl").write_text('{"text": "x"}\n{"txt": "y"}\n')
    with pytest.raises(UserError, match=r"b\.jsonl, line 2"):
        measured(folder, text_input=texts.TextInput((Path("b.jsonl"),)))
    for wrong in ({"length": 1}, {"samples": 0}, {"buckets": 0}, {"buckets": LENGTH + 1}):
        with pytest.raises(UserError, match="at least 2"):
            measured(folder, **wrong)
    poisoned = tiny.checkpoint(workdir / "models" / "poisoned", vocab_size=tiny.WORDS)
    tiny.tokenizer(poisoned)
    model = AutoModelForCausalLM.from_pretrained(poisoned)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    model.save_pretrained(poisoned)
    with pytest.raises(UserError, match="sequence 0 are not finite"):
        measured(checkpoint.resolve("models/poisoned").folder)


def test_statistics_of_version_0_1_are_not_measured_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(folder)
    path = Path("calib/tiny/similarity.json")
    old = json.loads(path.read_text())
    del old["texts"]["characters"]
    path.write_text(json.dumps(old))
    monkeypatch.setattr(calibrate, "_measure", lambda *_: pytest.fail("measured again"))
    assert measured(folder).record.samples == SAMPLES


def test_it_works_from_another_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch, workdir: Path
) -> None:
    (workdir / "elsewhere").mkdir()
    here = folder.resolve()
    monkeypatch.chdir(workdir / "elsewhere")
    measured(here)
    assert (workdir / "calib" / "tiny" / "similarity.json").is_file()
    assert not list((workdir / "elsewhere").iterdir())


@pytest.mark.slow
def test_a_run_that_was_killed_at_any_write_gives_the_same_numbers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither sums nor statistics that are half there are taken for whole ones."""
    monkeypatch.setattr(calibrate, "SAVED_EVERY", 0.0)
    once = streams.torch_streams(folder)
    monkeypatch.setattr(streams, "torch_streams", lambda *_: once)
    few = {"samples": 2, "length": 8}
    whole, calib = measured(folder, **few), checkpoint.open_checkpoint(folder).calib
    kills = 0

    def prepare() -> None:  # the text's own file stays: to cut it takes longer than all else
        for file in (*calib.glob("similarity*"), *calib.glob(".similarity*")):
            file.unlink()

    for _ in every_kill(calib, prepare, lambda: measured(folder, **few)):
        kills += 1
        again = measured(folder, **few)
        for name, mean in whole.mean.items():
            np.testing.assert_allclose(again.mean[name], mean, rtol=1e-12)
            np.testing.assert_allclose(again.stderr[name], whole.stderr[name], rtol=1e-12)
        assert not list(calib.glob(".similarity*"))
    assert kills > 20
