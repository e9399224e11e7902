"""generate as a command: text, stream, JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.runtime.runner import Runner
from pipeline.types import UserError
from tests.commands import run

PROMPT = "the time"


def test_text_stream_and_json_agree(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("generate", model / "mlp1.fp32.onnx", PROMPT, "--max-tokens", "5")
    record = json.loads(run(capsys, *command, "--json"))
    assert record["prompt"] == PROMPT and len(record["tokens"]) == 5 and record["finish_reason"] == "length"
    assert record["prompt_tokens"] >= 1 and record["text"]
    assert record["first_ms"] > 0 < record["ms_a_token"]
    assert run(capsys, *command) == run(capsys, *command, "--stream") == PROMPT + record["text"] + "\n"


def test_a_draw_is_repeated_by_its_seed(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("generate", model / "base.fp32.onnx", PROMPT, "--max-tokens", "8", "--temperature", "3")
    first, again, other = (run(capsys, *command, "--seed", seed) for seed in (1, 1, 2))
    assert first == again != other


def test_a_merged_graph_names_the_graphs_to_take(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graphs = [model / f"{name}.fp32.onnx" for name in ("base", "mlp1")]
    merged = Path(run(capsys, "merge", *graphs).strip())
    with pytest.raises(
        UserError, match=r"holds several variants; continue the text with one of them: "
    ) as error:
        run(capsys, "generate", merged, PROMPT)
    assert str(error.value).endswith(", ".join(str(merged.with_name(graph.name)) for graph in graphs))
    assert "\n" not in str(error.value)


def test_a_stop_string_that_is_a_special_token(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads(run(capsys, "generate", model / "base.fp32.onnx", PROMPT, "--stop", "</s>", "--json"))
    assert record["finish_reason"] in ("stop", "length") and "</s>" not in record["text"]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--max-tokens", "0", "max_tokens 0 is not between 1 and"),
        ("--max-tokens", "-3", "max_tokens -3 is not between 1 and"),
        ("--max-tokens", "999999", "max_tokens is 999999"),
        ("--temperature", "nan", "temperature nan is not between 0 and 100"),
        ("--temperature", "-1", "temperature -1.0 is not between"),
        ("--temperature", "inf", "temperature inf is not between"),
        ("--top-p", "nan", "top_p nan is not above 0"),
        ("--top-p", "0", "top_p 0.0 is not above 0"),
        ("--top-k", "-1", "top_k -1 is not between"),
        ("--seed", "-1", "seed -1 is negative"),
        ("--repetition-penalty", "nan", "repetition_penalty nan is not between"),
        ("--stop", "", "a stop string is empty"),
    ],
)
def test_values_out_of_range_are_refused(
    option: str, value: str, message: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=message):
        run(capsys, "generate", model / "base.fp32.onnx", PROMPT, option, value)


def test_a_graph_without_a_cache_is_refused(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runner, "has_cache", property(lambda _: False))
    with pytest.raises(UserError, match="has no cache to generate with"):
        run(capsys, "generate", model / "base.fp32.onnx", PROMPT)


def test_wrong_input(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="--provider is cpu, cuda or auto, not 'tpu'"):
        run(capsys, "generate", model / "base.fp32.onnx", PROMPT, "--provider", "tpu")
    with pytest.raises(UserError, match=r"none\.onnx does not exist"):
        run(capsys, "generate", model / "none.onnx", PROMPT)
