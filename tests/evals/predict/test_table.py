"""A prediction as a table."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from pipeline.evals import gpus
from pipeline.evals.predict.candidates import CostedVariant
from pipeline.evals.predict.predict import predict
from pipeline.evals.predict.table import table
from pipeline.models.named_configs import NamedConfig
from pipeline.types import BASE, SkipSet
from tests.evals.test_roofline import gpu

LLAMA_2_7B = json.loads((Path(__file__).parent / "llama-2-7b.json").read_text())
VARIANTS = [CostedVariant(skip.name, skip) for skip in (BASE, SkipSet.of("attn", range(21, 32)))]


def lines(card: gpus.Gpu, **changes: object) -> list[str]:
    model = NamedConfig("m", LLAMA_2_7B | changes, Path("config.json"))
    page = io.StringIO()
    Console(width=100, file=page).print(table(predict(model, VARIANTS, card)))
    return page.getvalue().splitlines()


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_every_number_with_what_binds_it() -> None:
    words = lines(gpus.find("a100"))
    assert max(map(len, words)) <= 100 and "…" not in "".join(words)
    assert "2039 GB/s, 312 TFLOP/s, 23.9 µs a launch; fp16, batch 1" in words[0]
    rows = [cells(line) for line in words if line.startswith("│")]
    assert rows[0] == ["base", "50", "6.49 b", "0.0", "31.09 l", "0.0", "6.49 b", "0.0", "31.09 l", "0.0"]
    assert rows[1][:6] == ["attn21-31", "50", "5.77 b", "11.2", "24.26 l", "22.0"]
    assert [row[1] for row in rows] == ["50", "50", "100", "100"]
    assert "launches are" not in " ".join(words) and "✗" not in " ".join(words)


def test_what_does_not_fit_is_said_and_has_no_number() -> None:
    words = lines(gpu(900, 65, memory=12))
    rows = [cells(line) for line in words if line.startswith("│")]
    assert rows[0] == ["base ✗", "50", *[""] * 8] and rows[1][0] == "attn21-31" and rows[1][2].endswith(" b")
    text = " ".join(" ".join(words).split())
    assert "✗ does not fit: its weights and cache need 13.5 GB or more, and the GPU has 12.9" in text


def test_launches_of_an_architecture_that_was_not_counted() -> None:
    text = " ".join(" ".join(lines(gpus.find("a100"), model_type="opt")).split())
    assert "launches are llama's: those of this architecture were not counted" in text
