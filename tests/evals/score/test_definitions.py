from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.evals.score import definitions
from pipeline.types import UserError

TASK = (
    "title: x\nsource: y\nharness: a.yaml\nnum_fewshot: 0\nmetric: {metric}\ncolumns: [a]\n{more}"
    "data: {{ test: {{ file: a, rows: 1, from: here }} }}\n"
)
MEAN = "title: x\nsource: y\nmetric: acc\nmean_of: [{members}]\n"


def write(folder: Path, text: str) -> Path:
    file = folder / "own.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("metric", "more", "chance"),
    [
        ("acc", "choices: 4\n", 0.25),
        ("acc_norm", "choices: 2\n", 0.5),
        ("acc", "", None),
        ("exact_match", "choices: 4\n", None),
    ],
)
def test_chance_is_known_of_a_fixed_number_of_choices(
    metric: str, more: str, chance: float | None, tmp_path: Path
) -> None:
    assert definitions.read_single(write(tmp_path, TASK.format(metric=metric, more=more))).chance == chance


def test_the_keys_say_what_a_file_is(tmp_path: Path) -> None:
    mean = definitions.read(write(tmp_path, MEAN.format(members="a, b")))
    assert isinstance(mean, definitions.MeanDefinition) and mean.mean_of == ["a", "b"]
    part = "parts: { p: { harness: a.yaml, num_fewshot: 0, metric: acc, columns: [a], data: {} } }\n"
    composite = definitions.read(write(tmp_path, "title: x\nsource: y\nmetric: acc\n" + part))
    assert isinstance(composite, definitions.CompositeDefinition) and list(composite.parts) == ["p"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MEAN.format(members=""), "is no benchmark: mean_of List should have at least 1 item"),
        (MEAN.format(members="/a"), "is no benchmark: mean_of.0 Value error, '/a' is no path inside"),
        (MEAN.format(members="a") + "parts: {}\n", "is no benchmark: parts Extra inputs"),
    ],
)
def test_a_wrong_mean_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        definitions.read(write(tmp_path, text))
    assert "\n" not in str(refusal.value)


def test_a_mean_is_no_benchmark_of_one_task(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no benchmark of one task"):
        definitions.read_single(write(tmp_path, MEAN.format(members="a")))
