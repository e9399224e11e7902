"""generate as a command: text, stream, JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.types import UserError
from tests.commands import run

PROMPT = "the time"


def test_text_stream_and_json_agree(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("generate", model / "mlp1.fp32.onnx", PROMPT, "--max-tokens", "5")
    record = json.loads(run(capsys, *command, "--json"))
    assert record["prompt"] == PROMPT and len(record["tokens"]) == 5 and record["finish_reason"] == "length"
    assert record["prompt_tokens"] >= 1 and record["text"]
    assert run(capsys, *command) == run(capsys, *command, "--stream") == PROMPT + record["text"] + "\n"


def test_a_draw_is_repeated_by_its_seed(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("generate", model / "base.fp32.onnx", PROMPT, "--max-tokens", "8", "--temperature", "3")
    first, again, other = (run(capsys, *command, "--seed", seed) for seed in (1, 1, 2))
    assert first == again != other


def test_wrong_input(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="--provider is cpu or cuda, not tpu"):
        run(capsys, "generate", model / "base.fp32.onnx", PROMPT, "--provider", "tpu")
    with pytest.raises(UserError, match=r"none\.onnx does not exist"):
        run(capsys, "generate", model / "none.onnx", PROMPT)
