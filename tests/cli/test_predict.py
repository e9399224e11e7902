"""predict as a command: tables, JSON, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.types import UserError
from tests.commands import run

CONFIG = Path(__file__).parent.parent / "evals" / "predict" / "llama-2-7b.json"


def test_the_papers_model_is_shown_beside_the_papers_times(capsys: pytest.CaptureFixture[str]) -> None:
    words = run(capsys, "predict", CONFIG, "--gpu", "a100")
    assert max(map(len, words.splitlines())) <= 100 and "…" not in words
    for part in (
        "llama-2-7b on NVIDIA A100 80GB SXM",
        "block21-31",
        "attn28-31",
        "Tyukin et al. 2024",
        "in 32, bytes",
    ):
        assert part in words


def test_json_of_several_gpus_and_variants(capsys: pytest.CaptureFixture[str]) -> None:
    options = (
        "--gpu",
        "h100,t4",
        "--skip",
        "attn",
        "--skip",
        "mlp,mlp3~rank16",
        "--frac",
        "0.25",
        "--lengths",
        "64",
    )
    found = json.loads(
        run(capsys, "predict", CONFIG, *options, "--launch-us", "10", "--batch", "2", "--json")
    )
    first, second = found["predictions"]
    assert (first["gpu"]["name"], second["gpu"]["name"]) == ("NVIDIA H100 SXM", "NVIDIA T4")
    assert [row["variant"] for row in first["rows"]] == ["base", "attn24-31", "mlp24-31", "mlp3~rank16"]
    base, attention = first["rows"][0]["prefill"], first["rows"][1]["prefill"]
    assert (base["launches"], base["eager_ms"]) == (1301, pytest.approx(13.01))
    assert attention["eager_saved"] == pytest.approx(100 * 8 * 26 / 1301)
    assert (first["batch"], first["launch_us"], first["precision"]) == (2, 10, "fp16")
    assert first["gpu"]["source"].startswith("NVIDIA H100 datasheet") and len(found["paper"]["cells"]) == 36


def test_a_model_of_the_project_without_an_argument(
    workdir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = workdir / "graphs" / "m"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(CONFIG.read_text())
    (folder / "source.json").write_text("{}")
    monkeypatch.setenv("PIPELINE_MODEL", "m")
    found = json.loads(run(capsys, "predict", "--skip", "block31", "--lengths", "8", "--json"))
    assert found["predictions"][0]["model"] == "m" and found["paper"] is None


@pytest.mark.parametrize("stem", ["mlp1.fp32", "base.fp32"])
def test_a_graph_stands_for_its_variant(stem: str, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A base has none: the papers' nine are beside it, as beside the model's name."""
    options = ("--lengths", "8", "--json")
    of_graph = json.loads(run(capsys, "predict", model / f"{stem}.onnx", *options))
    skip = ("--skip", "mlp1") if stem == "mlp1.fp32" else ()
    assert of_graph == json.loads(run(capsys, "predict", model, *skip, *options))
    (prediction,) = of_graph["predictions"]
    variants = [row["variant"] for row in prediction["rows"]]
    assert prediction["model"] == "m" and variants[0] == "base"
    assert (variants[1:] == ["mlp1"]) == (stem == "mlp1.fp32") and len(variants) > 1


def test_a_graph_that_is_not_there(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"^graphs/m/mlp1\.fp32\.onnx does not exist; `pipeline list` shows"):
        run(capsys, "predict", "graphs/m/mlp1.fp32.onnx")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--gpu", "a101"), "no GPU 'a101' is known; choose from a10, a100, .*rtx4090"),
        (("--lengths", "fifty"), "--lengths 'fifty' is not a list of whole numbers"),
        (("--lengths", "50,0"), "--lengths and --batch must be at least 1"),
        (("--skip", "attn"), "--skip attn takes exactly one of --frac, --count and --layers"),
        (("--skip", "attn40"), "layer 40 does not exist"),
        (("--launch-us", "-3"), "--launch-us -3 is not a time"),
    ],
)
def test_refusals(options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=message):
        run(capsys, "predict", CONFIG, *options)


def test_a_config_without_sizes(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workdir / "gpt2.json").write_text('{"model_type": "gpt2", "n_embd": 768, "n_layer": 12}')
    with pytest.raises(UserError, match=r"config\.json of 'gpt2' has no 'hidden_size'"):
        run(capsys, "predict", "gpt2.json")
