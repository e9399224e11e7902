"""export and merge as commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import store
from pipeline.types import UserError
from tests import tiny
from tests.commands import run


@pytest.fixture
def source(workdir: Path) -> str:
    tiny.tokenizer(tiny.checkpoint(workdir / "models" / "m", vocab_size=tiny.WORDS))
    return "models/m"


def test_export_prints_the_path_and_as_json_the_sidecar(
    source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "export", source) == "graphs/m/base.fp32.onnx\n"
    shown = json.loads(run(capsys, "export", source, "--skip", "mlp", "--frac", "0.5", "--json"))
    path = Path("graphs/m/mlp1.fp32.onnx")
    assert shown == {"path": str(path), **store.sidecar(path).plain()}
    twin = run(capsys, "export", source, "--skip", "attn0", "--precision", "fp16", "--head", "all")
    assert twin == "graphs/m/attn0.fp16.all.onnx\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--precision", "bf16"),
            "--precision 'bf16' is not known; choose fp32",
        ),
        (("--head", "none"), "--head is gather or all, not 'none'"),
        (("--adapter", ""), "--adapter is empty; name one, or leave it out"),
        (("--compensation", ""), "--compensation is empty"),
        (("--from-onnx", "x"), "--from-onnx names the model already"),
        (("--cache", "fixed"), "--cache is dynamic or static, not 'fixed'"),
        (("--cache", "static"), "--cache static and --max-tokens N, the tokens that it holds, go together"),
        (("--max-tokens", "200"), "--cache static and --max-tokens N"),
    ],
)
def test_wrong_options(options: tuple[str, ...], message: str, source: str, capsys) -> None:
    with pytest.raises(UserError, match=message):
        run(capsys, "export", source, *options)


def test_merge(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graphs = [model / "base.fp32.onnx", model / "mlp1.fp32.onnx"]
    path = Path(run(capsys, "merge", *graphs).strip())
    assert list(json.loads(run(capsys, "merge", *graphs, "--json"))["variants"]) == ["base", "mlp1"]
    assert path.is_file() and path.parent == model


def test_export_warns_of_a_tokenizer_and_generate_refuses_the_request_alone(
    source: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Case 19: <|im_start|> was added to the tokenizer after the model was saved."""
    config = json.loads(Path(source, "tokenizer_config.json").read_text())
    config["additional_special_tokens"] = ["<|im_start|>"]
    Path(source, "tokenizer_config.json").write_text(json.dumps(config))
    graph = run(capsys, "export", source).strip()
    (warning,) = [line for line in caplog.messages if line.startswith("warning:")]
    assert "has 1 tokens beyond the 300 rows" in warning and "'<|im_start|>' (300)" in warning
    with pytest.raises(UserError, match="whose id 300 is beyond the 300 rows"):
        run(capsys, "generate", graph, "hello <|im_start|> you", "--max-tokens", "2")
    assert run(capsys, "generate", graph, "hello", "--max-tokens", "2").startswith("hello")


def test_export_without_a_usable_tokenizer_writes_the_graph_and_warns(
    source: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    Path(source, "tokenizer.json").write_text("{}")
    graph = run(capsys, "export", source).strip()
    assert Path(graph).is_file() and "no tokenizer that can be read" in caplog.text
    assert "passed" in run(capsys, "check", graph)  # on random ids


def test_export_of_a_static_cache(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--skip", "attn0", "--cache", "static", "--max-tokens", "200")
    path = Path(run(capsys, "export", source, *options).strip())
    assert path == Path("graphs/m/attn0.fp32.static200.onnx") and store.graph_sidecar(path).max_tokens == 200


def test_a_static_cache_of_too_many_tokens_is_refused_before_the_copy(source: str, capsys) -> None:
    with pytest.raises(UserError, match="not between 128 and the model's context of 256 tokens"):
        run(capsys, "export", source, "--cache", "static", "--max-tokens", "4096")
    assert not Path("graphs").exists()
