"""What `pipeline heal` says of bad input; test_calib.py heals a graph."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.types import UserError
from tests.commands import run


@pytest.mark.parametrize("rate", ["nan", "1e999"])
def test_a_learning_rate_that_is_no_number_is_refused(
    rate: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"--lr .* is not a number above 0"):
        run(capsys, "heal", model / "mlp1.fp32.onnx", "--lr", rate)


def test_two_ways_of_learning_exclude_each_other(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="--kl and --aux exclude each other"):
        run(capsys, "heal", model / "mlp1.fp32.onnx", "--kl", "--aux")
