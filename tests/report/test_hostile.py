"""Whatever stands in one result file, the report goes on: the file is a problem, or its value shown."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.report import collect, exports, report
from pipeline.types import UserError
from tests import results

GOOD = "SmolLM2-135M-Instruct"
RAW = "@@raw@@"
HOSTILE: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    -0.5,
    1e308,
    5e-324,
    "",
    "text",
    "../../../etc/passwd",
    "/dev/zero",
    "a\0b",
    "n" * 300,
    "block0-9999" + "_0-9999" * 20_000,
    "<script>alert(1)</script>",
    [],
    [1, "a"],
    {},
    {"../x": 1},
)
"""Values that JSON has; the rest are texts that no JSON writer gives."""
HOSTILE_TEXT = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "1" + "0" * 400,
    "1" + "0" * 5000,
    '"\\ud800"',
    "[" * 3000 + "]" * 3000,
    '{"a":' * 500 + "1" + "}" * 500,
)


def places(record: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in JSON: every key and every first item, whole parts of it included."""
    if at:
        yield at
    if isinstance(record, dict):
        for key, value in record.items():
            yield from places(value, (*at, key))
    elif isinstance(record, list) and record:
        yield from places(record[0], (*at, 0))


def spoilt(record: Any, at: tuple[Any, ...]) -> Iterator[str]:
    """The record's JSON with each hostile value at a place, and with nothing there."""

    def changed(change: Callable[[Any, Any], None]) -> str:
        other = copy.deepcopy(record)
        parent = other
        for key in at[:-1]:
            parent = parent[key]
        change(parent, at[-1])
        return json.dumps(other)

    for value in HOSTILE:
        yield changed(lambda parent, key, value=value: parent.__setitem__(key, value))
    yield changed(lambda parent, key: parent.__delitem__(key))
    for text in HOSTILE_TEXT:
        yield changed(lambda parent, key: parent.__setitem__(key, RAW)).replace(f'"{RAW}"', text)


def full(name: str) -> tuple[Path, Any]:
    """A valid file of a kind with every optional field in it: (its path, its JSON)."""
    if name == "ledger":
        path = results.ledger(
            [results.job("score", "m", "failed", kind="mlp", frac=0.25, select="last", variant="mlp1",
                         precision="fp32", task="arc", error="no", seconds=1.0, command=("a",))]
        )  # fmt: skip
    elif name == "statistics":
        results.statistics("m", 5)
        path = Path("calib/m/similarity.json")
    elif name == "engine":
        path = results.engine("m", "mlp1").with_suffix(".json")
    elif name == "check":
        path = results.check("m", "mlp1", passed=False)
    elif name == "bench":
        path = results.bench("m", "mlp1", 5.0, lengths=(50,))
    else:
        path = results.score("m", "mlp1", name, 0.5)
    record = json.loads(path.read_text())
    if name == "check":
        agreement = {
            "max_abs": 0.1,
            "max_rel": 0.1,
            "cosine": 1.0,
            "limit": 0.1,
            "stable": True,
            "passed": True,
        }
        record |= {"feeds": {"a": {"b": agreement}}, "worst": {"max_rel": 0.1}, "localized": "layer 1"}
    elif name == "bench":
        state = {"sm_mhz": 1.0, "watts": 2.0, "reasons": ["a"]}
        load = {"before": state, "after": state, "sm_mhz": [1.0, 2.0, 3.0], "reasons": {"a": 0.5}}
        record["conditions"] |= {"gpu": {"50": load}, "how": {"a": "b"}, "agreement": {"50": {"a": 0.1}}}
        record["rows"][0] |= {"byte_ceiling": 5.0, "share": 0.9, "device_mb": 1.0, "on_host": {"Add": 1}}
    elif name not in ("ledger", "statistics", "engine"):
        record["data"] = {"arc": {"test": {"file": "a", "rows": 1, "official_rows": 1, "sha256": "0" * 64}}}
        record["samples"] = {"arc": [{"doc": 1}]}
    return path, record


def spread(name: str) -> int:
    """Writes one file for each hostile value at each place, of its own model; says how many."""
    path, record = full(name)
    siblings = {p.name: p.read_bytes() for p in path.parent.iterdir() if p.suffix in (".plan", ".npz")}
    shutil.rmtree(Path(*path.parts[:3]) if name in ("engine", "ledger") else path.parent)
    count = 0
    for at in places(record):
        for text in spoilt(record, at):
            parts = list(path.parts)
            parts[-3 if name == "engine" else -2] = f"m{count}"
            target = Path(*parts)
            target.parent.mkdir(parents=True)
            target.write_text(text)
            for sibling, content in siblings.items():
                (target.parent / sibling).write_bytes(content)
            count += 1
    return count


@pytest.mark.slow
@pytest.mark.parametrize("name", ["check", "bench", "arc", "c4-loss", "engine", "ledger", "statistics"])
def test_a_hostile_value_in_any_field_stops_nothing(name: str, workdir: Path) -> None:
    results.small_grid(GOOD)
    good = collect.collect()
    report.write(Path("good"), good)
    count = spread(name)
    assert count > 100
    collection = collect.collect()
    assert len(collection.sources) + len(collection.problems) == len(good.sources) + count
    assert len(collection.problems) > count / 4
    assert all("\n" not in reason and len(reason) < 700 for _, reason in collection.problems)
    report.write(Path("out"), collection)
    exports.lm_eval(Path("lm"), collection)
    for table in ("good", "out"):
        assert (Path(table) / "index.html").stat().st_size > 1000
    kept = set(Path("out/tables/results.csv").read_text().splitlines())
    assert set(Path("good/tables/results.csv").read_text().splitlines()) <= kept
    page = Path("out/index.html").read_text()
    assert "<script>alert" not in page
    assert not re.search(r"\b(?:nan|inf)\b[ .,%]", Path("out/tables/results.csv").read_text())


def numbers_replaced(record: Any, value: float) -> Any:
    """The record with a value in the place of every number that is no count."""
    if isinstance(record, dict):
        return {key: numbers_replaced(part, value) for key, part in record.items()}
    if isinstance(record, list):
        return [numbers_replaced(part, value) for part in record]
    return value if isinstance(record, float) else record


@pytest.mark.parametrize("value", [0.0, 1e100, -1e100, 5e-324, 100.0])
@pytest.mark.parametrize("which", ["base", "block", ""])
def test_odd_numbers_in_a_whole_grid_stop_nothing(value: float, which: str, workdir: Path) -> None:
    results.compensated_grid(GOOD)
    for four in ("arc", "hellaswag", "truthfulqa", "mmlu"):  # the yardstick is the loss, which is divided by
        for path in Path("evals/results").glob(f"*/*.{four}.json"):
            path.unlink()
    results.healed_grid("other")
    for path in Path("evals/results").glob(f"*/{which}*.json"):
        results.put(path, numbers_replaced(json.loads(path.read_text()), value))
    if value < 0 and not which:
        with pytest.raises(
            UserError, match=r"none of \d+ result files can be used; the first, evals/results/"
        ):
            collect.collect()
        return
    collection = collect.collect()
    assert len(collection.sources) > 10
    report.write(Path("out"), collection)
    exports.lm_eval(Path("lm"), collection)


@pytest.mark.parametrize(
    "name", ["odd\n.json", "\udcff.json", "-rf.json", "n" * 250 + ".json", "é'\"<b>.json"]
)
def test_a_file_may_have_any_name(name: str, workdir: Path) -> None:
    results.small_grid(GOOD)
    (Path("evals/results") / GOOD / "base.fp32.check.json").rename(Path("evals/results") / GOOD / name)
    (Path("evals/results") / GOOD / f"a{name[1:]}").write_text("{}")
    (Path("evals/results") / name).mkdir()
    (Path("evals/results") / name / "one.json").write_text("{}")
    collection = collect.collect()
    assert len(collection.problems) == (3 if name == "\udcff.json" else 2)
    assert len(collection.artefacts) == 4
    report.write(Path("out"), collection)


def test_what_is_no_file_is_a_problem(workdir: Path) -> None:
    results.small_grid(GOOD)
    folder = Path("evals/results") / GOOD
    (folder / "folder.json").mkdir()
    os.mkfifo(folder / "pipe.json")
    (folder / "zero.json").symlink_to("/dev/zero")
    (folder / "nothing.json").symlink_to("/nowhere/at/all")
    (folder / "circle.json").symlink_to("circle.json")
    Path("evals/sweeps/x/ledger.json").mkdir(parents=True)
    Path("calib/x/similarity.json").mkdir(parents=True)
    os.mkfifo("graphs/config-is-here")
    (Path("graphs") / GOOD / "config.json").unlink()
    os.mkfifo(Path("graphs") / GOOD / "config.json")
    collection = collect.collect()
    assert len(collection.problems) == 7 and len(collection.artefacts) == 4
    report.write(Path("out"), collection)


@pytest.mark.parametrize("kind", ["folder", "pipe", "link", "deep", "numbers"])
def test_a_manifest_that_is_none_is_replaced(kind: str, workdir: Path) -> None:
    results.small_grid(GOOD)
    manifest = Path("out/manifest.json")
    manifest.parent.mkdir()
    if kind == "folder":
        manifest.mkdir()
        with pytest.raises(UserError, match=r"out/manifest\.json is a folder"):
            report.write(Path("out"), collect.collect())
        return
    if kind == "pipe":
        os.mkfifo(manifest)
    elif kind == "link":
        manifest.symlink_to("/dev/zero")
    else:
        manifest.write_text("[" * 9000 if kind == "deep" else '{"files": 1' + "0" * 5000 + "}")
    report.write(Path("out"), collect.collect())
    assert len(json.loads(manifest.read_text())["files"]) > 20


def test_arrays_that_are_no_statistics_are_a_gap(workdir: Path) -> None:
    """Their digest is right: whoever wrote the record wrote them."""
    results.statistics("m", 5)
    path, good = Path("calib/m/similarity.npz"), dict(np.load("calib/m/similarity.npz"))
    record = json.loads(Path("calib/m/similarity.json").read_text())
    wrong = {name: array[:1] for name, array in good.items()}
    holes = {name: np.full_like(array, np.nan) for name, array in good.items()}
    words = {name: np.full(array.shape, "a") for name, array in good.items()}
    for arrays in (wrong, holes, words, {}, {**good, "angular.mean": np.zeros((3, 3))}, None):
        if arrays is None:
            path.write_bytes(b"PK\x03\x04cut")
        else:
            np.savez_compressed(path, **arrays)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        results.put(Path("calib/m/similarity.json"), {**record, "arrays_sha256": digest})
        collection = collect.collect()
        assert collection.statistics[0].similarity is None and "calibrate m" in str(
            collection.statistics[0].gap
        )
        report.write(Path("out"), collection)
