"""ship and serve as commands: what they refuse, and what they hand on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.runtime import onnxruntime
from pipeline.ship import serve
from pipeline.ship.fronts import Fronts
from pipeline.ship.triton import wheel
from pipeline.ship.web.guard import Access
from pipeline.types import UserError
from tests import tiny
from tests.commands import run


def test_ship_writes_a_repository(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = model / "mlp1.fp32.onnx"
    tiny.passed(graph)
    shown = json.loads(run(capsys, "ship", graph, "--to", "triton", "repo", "--rows", "3", "--json"))
    (shipped,) = shown["models"].values()
    assert shipped["versions"]["1"]["variant"] == "mlp1" and shipped["versions"]["1"]["settings"]["rows"] == 3
    assert (Path("repo") / "SHIP.json").is_file()
    docker = run(capsys, "serve", "repo", "--docker")
    assert "docker run" in docker and str(Path("repo").resolve()) in docker


def test_what_is_refused(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"--to takes triton, gguf or hf and a path, not .vllm."):
        run(capsys, "ship", model / "base.fp32.onnx", "--to", "vllm", "repo")
    with pytest.raises(UserError, match="has passed no check"):
        run(capsys, "ship", model / "base.fp32.onnx", "--to", "triton", "repo")
    assert not Path("repo").exists()


@pytest.fixture
def repo(model: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A repository of one variant."""
    tiny.passed(model / "mlp1.fp32.onnx")
    run(capsys, "ship", model / "mlp1.fp32.onnx", "--to", "triton", "repo")
    return Path("repo")


def test_serve_hands_the_provider_on(
    repo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the server and to the smoke run; `auto` is what both environments have."""
    asked: list[object] = []
    monkeypatch.setattr(serve, "smoke", lambda _, provider: asked.append(provider) or [])
    monkeypatch.setattr(serve, "serve", lambda *arguments: asked.append(arguments[-1]))
    reasons: dict[object, str | None] = {onnxruntime: None, wheel: None}
    for module in reasons:
        monkeypatch.setattr(module, "refusal", lambda one, module=module: reasons[module])
    run(capsys, "serve", repo, "--provider", "cuda")
    monkeypatch.setenv("PIPELINE_PROVIDER", "auto")
    run(capsys, "serve", repo, "--smoke")
    reasons[wheel] = "no CUDA in the server's environment"
    run(capsys, "serve", repo, "--smoke")
    assert asked == ["cuda", "cuda", "cpu"]
    monkeypatch.delenv("PIPELINE_PROVIDER")
    run(capsys, "serve", repo)
    assert asked == ["cuda", "cuda", "cpu", "cpu"]
    with pytest.raises(UserError, match="no CUDA in the server's environment"):
        run(capsys, "serve", repo, "--smoke", "--provider", "cuda")
    with pytest.raises(UserError, match="--provider is cpu, cuda or auto, not 'gpu'"):
        run(capsys, "serve", repo, "--provider", "gpu")
    assert len(asked) == 4


def test_without_a_gpu_no_server_is_looked_for(
    repo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, before gigabytes are fetched for an environment that could not run."""
    monkeypatch.setattr(onnxruntime, "refusal", lambda _: "needs an NVIDIA GPU")
    monkeypatch.setattr(wheel, "find", None)
    for options in (("--provider", "cuda"), ()):
        monkeypatch.setenv("PIPELINE_PROVIDER", "" if options else "cuda")
        for command in (("--smoke",), ()):
            with pytest.raises(UserError, match="needs an NVIDIA GPU"):
                run(capsys, "serve", repo, *command, *options)
    assert "docker run" in run(capsys, "serve", repo, "--docker", "--provider", "cuda")


def test_serve_hands_on_who_may_ask(
    repo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key of the option goes before that of the environment; neither is printed."""
    given: list[Fronts] = []
    monkeypatch.setattr(serve, "serve", lambda *arguments: given.append(arguments[2]))
    run(capsys, "serve", repo)
    assert given.pop() == Fronts(None, Access("127.0.0.1", (), None), 300)
    monkeypatch.setenv("PIPELINE_API_KEY", "sesame")
    run(capsys, "serve", repo, "--openai", "--openai-port", "9", "--request-timeout", "7.5")
    assert given.pop() == Fronts(9, Access(api_key="sesame"), 7.5)
    hosts = ("--host", "0.0.0.0", "--allowed-host", "llm.lan", "--allowed-host", "llm")
    run(capsys, "serve", repo, *hosts, "--api-key", "other")
    assert given.pop().access == Access("0.0.0.0", ("llm.lan", "llm"), "other")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--api-key", ""), "the API key must be of visible ASCII letters, and not empty"),
        (("--api-key", "two words"), "the API key must be of visible ASCII letters"),
        (("--allowed-host", "http://llm.lan"), "--allowed-host takes a host without scheme and port"),
        (("--request-timeout", "0"), "--request-timeout takes seconds, above 0 and up to 86400, not 0"),
        (("--request-timeout", "nan"), "--request-timeout takes seconds, above 0 and up to 86400, not nan"),
    ],
)
def test_options_of_serve_that_are_refused(
    repo: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], line: str
) -> None:
    with pytest.raises(UserError, match=line):
        run(capsys, "serve", repo, *options)
