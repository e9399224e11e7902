"""What users write, and what commands left: recipes, benchmarks with rows, texts, records of every kind."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.evals.score import known
from tests.fuzz.kinds import Kind

ROOT = Path(__file__).parents[2]
PROBES = ("probes", "probe-arithmetic", "probe-brackets", "probe-copy", "probe-facts")
BENCHMARKS = ("smoke/smoke.yaml", "smoke/smoke-loss.yaml", "arc.yaml", "mmlu.yaml", "qmsum.yaml",
              *(f"probes/{name}.yaml" for name in PROBES))  # fmt: skip
ROWS = {"arc.jsonl": "jsonl", "boolq.jsonl": "jsonl", "hellaswag.jsonl": "jsonl", "arc.csv": "bytes",
        "arc.parquet": "bytes"}  # fmt: skip


def kinds() -> list[Kind]:
    """Of recipes, records, benchmarks and texts."""
    recipes = sorted((ROOT / "evals" / "recipes").glob("*.toml"))
    recipe = {f"{file.stem}.toml": "toml" for file in recipes} | {"full.toml": "toml"}
    benchmarks = {Path(name).name: "yaml" for name in BENCHMARKS}
    return [
        Kind("recipe", "recipes", recipe, _recipes, use_recipe),
        *(
            Kind("record", name, {"record.json": "json"}, _record(name), _use_record(name))
            for name in forms()
        ),
        Kind("record", "ship", {"SHIP.json": "json"}, _ship, use_ship),
        Kind("record", "answers", {"answers.jsonl": "jsonl"}, _answers, use_answers),
        Kind("benchmark", "definitions", benchmarks, _definitions, use_definitions),
        Kind("rows", "rows", ROWS, _rows, use_rows),
        Kind("texts", "texts", {"a.jsonl": "jsonl", "b.txt": "bytes"}, _texts, use_texts),
    ]


# ---- recipes ----------------------------------------------------------------------------------------------

_FULL = """
kinds = ["attn", "block"]
fractions = [0.25]
selectors = ["last"]
precisions = ["fp32"]
stages = ["calibrate", "select", "export", "check", "score", "bench"]
tasks = ["smoke"]
measure = "graphs"

[[models]]
name = "demo"
layers = 30
parameters = 134_515_008

[calibrate]
samples = 32
length = 128

[score]
limits = { smoke = 15 }

[bench]
sequences = 10
lengths = [50, 100]

[select]
seed = 1
tokens = "mean"

[build]
target = "sm80"
batch = [1, 1, 8]

[heal]
lr = 1e-4
targets = ["mlp"]
"""


def _recipes(folder: Path) -> None:
    folder.mkdir()
    known.of_harness()  # so that no child, forked from here, reads them for ten seconds or more
    for file in (ROOT / "evals" / "recipes").glob("*.toml"):
        shutil.copy(file, folder / file.name)
    (folder / "full.toml").write_text(_FULL, encoding="utf-8")


def use_recipe(folder: Path, free: Path) -> None:
    """As `sweep` reads its recipe."""
    from pipeline.sweep import recipe

    for file in sorted(folder.glob("*.toml")):
        recipe.read(file)


# ---- records ----------------------------------------------------------------------------------------------


@cache
def forms() -> dict[str, Any]:
    """Name → form of every record that a file holds."""
    from pydantic import TypeAdapter

    from pipeline.evals.score.results import records as _  # noqa: F401 - all modules with records are loaded
    from pipeline.store import records

    def below(form: type[records.Record]) -> list[type[records.Record]]:
        return [form, *(one for sub in form.__subclasses__() for one in below(sub))]

    found: dict[str, Any] = {form.__name__: form for form in sorted(below(records.Record)[1:], key=str)}
    found |= {"SIDECAR": records.SIDECAR, "RESULT": records.RESULT}
    found["object"] = TypeAdapter(dict[str, Any])
    return found


def _record(name: str) -> Any:
    def build(folder: Path) -> None:
        from pipeline.store import records

        folder.mkdir()
        sample = {"SIDECAR": "graph", "RESULT": "bench", "GraphRecord": "healed-graph"}.get(name)
        if sample:
            shutil.copy(ROOT / "tests" / "store" / "version_0_1" / f"{sample}.json", folder / "record.json")
        elif name == "object":
            (folder / "record.json").write_text('{"a": 1, "b": {"c": [1, "d", null]}}', encoding="utf-8")
        else:
            schema = forms()[name].model_json_schema(by_alias=True)
            data = _example(schema, schema.get("$defs", {}))
            (folder / "record.json").write_text(json.dumps(data), encoding="utf-8")
        records.read(forms()[name], folder / "record.json")

    return build


def _example(schema: dict[str, Any], defs: dict[str, Any]) -> Any:
    """A value that a JSON schema of pydantic's allows."""
    if "$ref" in schema:
        return _example(defs[schema["$ref"].rsplit("/", 1)[1]], defs)
    if "const" in schema or "enum" in schema:
        return schema["const"] if "const" in schema else schema["enum"][0]
    if options := schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf"):
        return _example(options[0], defs)
    kind = schema.get("type")
    if kind == "object":
        extra = schema.get("additionalProperties")
        other = {"name": _example(extra, defs)} if isinstance(extra, dict) else {}
        return {key: _example(one, defs) for key, one in schema.get("properties", {}).items()} | other
    if kind == "array":
        if "prefixItems" in schema:
            return [_example(one, defs) for one in schema["prefixItems"]]
        return [_example(schema.get("items", {}), defs)] * max(1, schema.get("minItems", 1))
    if kind == "string":
        pattern = schema.get("pattern", "")
        return "0" * 64 if "64" in pattern else "int4" if pattern.startswith("^int") else "base"
    return {"integer": 1, "number": 0.5, "boolean": True}.get(str(kind))


def _use_record(name: str) -> Any:
    def use(folder: Path, free: Path) -> None:
        """As every command reads a record, and writes it again."""
        from pipeline import store
        from pipeline.store import records

        record = records.read(forms()[name], folder / "record.json")
        records.read_if_valid(forms()[name], folder / "record.json")
        store.read_json(folder / "record.json")
        if name == "object":
            store.write_json(free / "again.json", record)
            return
        store.write_json(free / "again.json", record.plain())
        records.read(forms()[name], free / "again.json")
        if hasattr(record, "as_variant"):
            variant = record.as_variant()
            assert variant is None or variant.stem

    return use


def _ship(folder: Path) -> None:
    folder.mkdir()
    shutil.copy(ROOT / "tests" / "store" / "version_0_1" / "ship.json", folder / "SHIP.json")


def use_ship(folder: Path, free: Path) -> None:
    """As `serve` and `ship` read a repository's record."""
    from pipeline.ship.triton import page, repository

    record = repository.read(folder)
    assert repository.newest(record) is not None
    page.write(free, record)
    repository.verify(folder, record)


def _answers(folder: Path) -> None:
    from pipeline.evals.score.journal import Journal

    folder.mkdir()
    with Journal(folder / "answers.jsonl") as journal:
        for i in range(5):
            journal.add({Journal.key("loglikelihood", str(i)): [0.5, True], Journal.key("text", i): ["a"]})


def use_answers(folder: Path, free: Path) -> None:
    """As `score` finds the answers of a run that was stopped."""
    from pipeline.evals.score.journal import Journal

    with Journal(folder / "answers.jsonl") as journal:
        journal.add({"new": [1.0]})


# ---- benchmarks and texts ---------------------------------------------------------------------------------


def _definitions(folder: Path) -> None:
    folder.mkdir()
    for name in BENCHMARKS:
        shutil.copy(ROOT / "evals" / "benchmarks" / name, folder / Path(name).name)


def use_definitions(folder: Path, free: Path) -> None:
    """As `score` reads the benchmarks of a project."""
    from pipeline.evals.score import benchmarks
    from pipeline.store import Project

    place = free / "evals" / "benchmarks"
    place.parent.mkdir(parents=True)
    place.symlink_to(folder)
    for name in BENCHMARKS:
        benchmarks.find(Path(name).stem, project=Project(free))
    benchmarks.find("mmlu_anatomy", project=Project(free))


_FORMS: dict[str, tuple[list[str], Any]] = {
    "arc": (["question", "choices", "answerKey"], "arc"),
    "boolq": (["question", "passage", "label"], "boolq"),
    "hellaswag": (["activity_label", "ctx_a", "ctx_b", "endings", "label"], "hellaswag"),
}


def _rows(folder: Path) -> None:
    import csv

    import pyarrow
    from pyarrow import parquet

    folder.mkdir()
    for name in _FORMS:
        source = ROOT / "evals" / "benchmarks" / "smoke" / f"{name}.jsonl"
        lines = source.read_text(encoding="utf-8").splitlines()[:6]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = [json.loads(line) for line in (folder / "arc.jsonl").read_text(encoding="utf-8").splitlines()]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "arc.parquet")
    with (folder / "arc.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "choices": json.dumps(row["choices"])} for row in rows)


def use_rows(folder: Path, free: Path) -> None:
    """As `score` reads a benchmark's rows."""
    from pipeline.evals.score import local_data

    for file in sorted(folder.iterdir()):
        columns, form = _FORMS[file.stem]
        local_data.read(file, columns, form)


def _texts(folder: Path) -> None:
    folder.mkdir()
    lines = [json.dumps({"text": text, "n": 1}) for text in ("One line.", "Zwei Zeilen, é.", "漢字")]
    (folder / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "b.txt").write_text("A text of two lines.\nThis is the second.\n", encoding="utf-8")


def use_texts(folder: Path, free: Path) -> None:
    """As `calibrate --texts` reads texts."""
    from pipeline.models.texts import TextInput

    TextInput((folder / "a.jsonl", folder / "b.txt")).read(1000)
