"""Every kind of record: what version 0.1 wrote is read, and what is broken is refused in one line.

version_0_1/ holds files that version 0.1 wrote for a tiny model, shortened.
"""

from __future__ import annotations

import copy
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from pipeline.store import records
from pipeline.types import SkipSet, UserError, Variant

SAMPLES = Path(__file__).parent / "version_0_1"
FORMS: dict[str, Any] = {
    "adapter": records.AdapterRecord,
    "base-graph": records.SIDECAR,
    "bench": records.BenchRecord,
    "check": records.CheckRecord,
    "choice": records.ChoiceRecord,
    "engine": records.SIDECAR,
    "graph": records.SIDECAR,
    "greedy": records.GreedyRecord,
    "healed-graph": records.SIDECAR,
    "ledger": records.LedgerRecord,
    "merged": records.SIDECAR,
    "optimum-graph": records.SIDECAR,
    "score": records.ScoreRecord,
    "ship": records.ShipRecord,
    "similarity": records.SimilarityRecord,
    "source": records.CheckpointSource,
    "source-gguf": records.CheckpointSource,
    "source-hub": records.CheckpointSource,
    "times": records.TimesRecord,
}
NAMES = sorted(FORMS)
Keys = tuple[str | int, ...]


def plain(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((SAMPLES / f"{name}.json").read_text())
    return data


def read(name: str, data: Any, folder: Path) -> Any:
    """Reads changed data as the record of a sample's kind."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(data))
    return records.read(FORMS[name], path)


def refusal(name: str, path: Path) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(UserError) as error:
        records.read(FORMS[name], path)
    line = str(error.value)
    assert "\n" not in line and line.startswith(str(path)), line
    return line


def leaves(data: Any, keys: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """(path of keys, value) of everything in it that holds nothing else."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from leaves(value, (*keys, key))
    if not isinstance(data, dict | list):
        yield keys, data


def changed(data: Any, keys: Keys, value: Any) -> Any:
    """A copy with another value at a path of keys."""
    copied = copy.deepcopy(data)
    place = copied
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    return copied


def known(data: Any, wanted: Any) -> bool:
    """Whether `data` holds everything of `wanted` that it knows a key of."""
    if isinstance(data, dict) and isinstance(wanted, dict):
        return all(known(data[key], wanted[key]) for key in data.keys() & wanted.keys())
    if isinstance(data, list) and isinstance(wanted, list):
        return len(data) == len(wanted) and all(map(known, data, wanted))
    return bool(data == wanted)


# ---- what is read ----


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_version_0_1_is_read_and_written_again_alike(name: str, tmp_path: Path) -> None:
    data = plain(name)
    record = records.read(FORMS[name], SAMPLES / f"{name}.json")
    assert isinstance(record, records.Record)
    written = json.loads(json.dumps(record.plain(), allow_nan=False))
    assert known(written, data), "a value changed"
    assert read(name, written, tmp_path) == record
    for key in written.keys() - data.keys():
        assert getattr(record, key) == type(record).model_fields[key].get_default(call_default_factory=True)


def test_a_graphs_record_says_its_variant() -> None:
    graph = records.read(records.SIDECAR, SAMPLES / "graph.json")
    assert isinstance(graph, records.GraphRecord)
    assert graph.as_variant() == Variant("tiny", SkipSet((2,), ()), "fp16") and graph.num_layers == 3
    assert graph.base is not None and graph.base.file == "base.fp16.onnx"
    assert graph.source is not None and graph.source.origin == "/home/me/models/tiny"
    healed = records.read(records.SIDECAR, SAMPLES / "healed-graph.json")
    assert isinstance(healed, records.GraphRecord)
    assert healed.as_variant().name == "attn2~heal" and len(healed.overlays) == 1


def test_other_sidecars_are_told_apart() -> None:
    engine = records.read(records.SIDECAR, SAMPLES / "engine.json")
    assert isinstance(engine, records.EngineRecord) and engine.folder == "graphs/tiny"
    assert engine.as_variant() == Variant("tiny", SkipSet((2,), ()), "fp16")
    assert engine.ranges.past == (0, 100, 2048) and engine.profiles[0]["input_ids"][2] == (8, 2048)
    merged = records.read(records.SIDECAR, SAMPLES / "merged.json")
    assert isinstance(merged, records.MergedRecord) and list(merged.variants) == ["base", "attn2"]
    optimum = records.read(records.SIDECAR, SAMPLES / "optimum-graph.json")
    assert isinstance(optimum, records.GraphRecord) and optimum.weights == {"model.onnx_data": 538968576}


def test_results_are_typed() -> None:
    check = records.read(records.CheckRecord, SAMPLES / "check.json")
    agreement = check.feeds["length 1"]["prefill/logits"]
    assert check.passed and agreement.passed and agreement.flips == 0 and check.limits is not None
    bench = records.read(records.BenchRecord, SAMPLES / "bench.json")
    assert bench.rows[0].length == 8 and bench.rows[0].interval[1] > bench.rows[0].improvement
    score = records.read(records.ScoreRecord, SAMPLES / "score.json")
    assert score.pipeline.key == "smoke.limit2" and not score.pipeline.is_whole
    assert score.pipeline.text == "16.67 ±16.67"
    assert score.data["smoke_arc"]["test"].file == "/home/me/evals/benchmarks/smoke/arc.jsonl"
    gguf = records.read(records.CheckpointSource, SAMPLES / "source-gguf.json")
    assert gguf.kind == "gguf" and gguf.file_stamp == (144811520, 1764000000123456789)


@pytest.mark.parametrize("name", NAMES)
def test_keys_of_later_versions_are_passed_over(name: str, tmp_path: Path) -> None:
    record = read(name, {**plain(name), "later": {"x": [1, 2]}}, tmp_path)
    assert record == records.read(FORMS[name], SAMPLES / f"{name}.json")


def test_a_record_matches_what_is_wanted_as_json_has_it() -> None:
    graph = records.read(records.SIDECAR, SAMPLES / "graph.json")
    data = plain("graph")
    assert graph.matches({}) and graph.matches(
        {key: data[key] for key in ("skip", "weights", "base", "tools")}
    )
    assert not graph.matches({"precision": "fp32"}) and not graph.matches({"no such field": None})
    assert graph.matches({"adapter": None}) and not graph.matches({"skip": {"attention": [2], "mlp": [1]}})


def test_a_record_is_changed_by_making_another() -> None:
    graph = records.read(records.SIDECAR, SAMPLES / "graph.json")
    other = graph.replaced(precision="fp32", base=None)
    assert isinstance(other, records.GraphRecord)
    assert (other.precision, other.base, other.skip) == (
        "fp32",
        None,
        graph.skip,
    ) and graph.precision == "fp16"
    with pytest.raises(ValueError, match="precision"):
        graph.replaced(precision="int8")
    with pytest.raises(ValueError, match="frozen"):
        graph.precision = "fp32"


def test_the_fields_of_a_variant_are_read_back() -> None:
    variant = Variant("my model é", SkipSet.parse("attn1_3+mlp2"), "fp16", "heal", "all")
    fields = json.dumps(records.variant_fields(variant)).encode()
    assert records.parse(records.VariantRecord, fields, Path("x.json")).as_variant() == variant


# ---- what is refused ----


@pytest.mark.parametrize("name", NAMES)
def test_values_of_another_type_are_refused(name: str, tmp_path: Path) -> None:
    """Each field in turn."""
    data = plain(name)
    model = type(records.read(FORMS[name], SAMPLES / f"{name}.json"))
    for key, field in model.model_fields.items():
        alias = field.serialization_alias or key
        if alias in data:
            line = refused(name, {**data, alias: [[{"no": "form"}]]}, tmp_path)
            assert alias in line or "artefact" in line


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_key_is_named(name: str, tmp_path: Path) -> None:
    data = plain(name)
    model = type(records.read(FORMS[name], SAMPLES / f"{name}.json"))
    required = [field.alias or key for key, field in model.model_fields.items() if field.is_required()]
    required = ["from" if key == "origin" else key for key in required]
    assert required
    for key in required:
        line = refused(name, {k: value for k, value in data.items() if k != key}, tmp_path)
        assert key in line and "missing" in line, line


def refused(name: str, data: Any, folder: Path) -> str:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(data))
    return refusal(name, path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("name", NAMES)
def test_numbers_must_be_finite(name: str, number: str, tmp_path: Path) -> None:
    data = plain(name)
    record = records.read(FORMS[name], SAMPLES / f"{name}.json")
    path = tmp_path / f"{name}.json"
    places = [
        keys
        for keys, value in leaves(data)
        if isinstance(value, int | float) and not isinstance(value, bool) and survives(record, keys)
    ]
    for keys in places:
        path.write_text(json.dumps(changed(data, keys, "here")).replace('"here"', number))
        refusal(name, path)


def survives(record: records.Record, keys: Keys) -> bool:
    """Whether the record has a value at this path of keys: others are of keys that it passes over."""
    value: Any = record.plain()
    for key in keys:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return False
    return keys[0] != "versions"  # lm-eval's own: a number or a text


@pytest.mark.parametrize("layer", [-1, 10_000, 2**70, 1.5, "2", True, None])
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("graph", ("skip", "attention", 0)),
        ("engine", ("skip", "attention", 0)),
        ("check", ("skip", "attention", 0)),
        ("bench", ("skip", "attention", 0)),
        ("choice", ("attention", 0)),
        ("ship", ("models", "tiny-attn2", "versions", "1", "skip", "attention", 0)),
    ],
)
def test_layers_lie_between_0_and_9999(name: str, keys: Keys, layer: Any, tmp_path: Path) -> None:
    assert "attention.0" in refused(name, changed(plain(name), keys, layer), tmp_path)


@pytest.mark.parametrize("layers", [0, -1, 10_001, 2**70])
def test_a_model_has_between_1_and_10000_layers(layers: int, tmp_path: Path) -> None:
    for name in ("graph", "merged"):
        assert "num_layers" in refused(name, {**plain(name), "num_layers": layers}, tmp_path)


@pytest.mark.parametrize("size", [-1, 2**70, 1.5])
def test_sizes_are_counts(size: float, tmp_path: Path) -> None:
    for name in ("graph", "merged", "engine"):
        assert "bytes" in refused(name, {**plain(name), "bytes": size}, tmp_path)


@pytest.mark.parametrize("digest", ["", "0" * 63, "0" * 65, "g" * 64, "A" * 64, "0" * 64 + "\n", 7, None])
def test_a_digest_is_64_small_hexadecimal_digits(digest: Any, tmp_path: Path) -> None:
    for name in ("graph", "engine", "merged", "check", "bench", "adapter"):
        assert "sha256" in refused(name, {**plain(name), "sha256": digest}, tmp_path)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "Invalid JSON"),
        (b"{", "Invalid JSON"),
        (b"[]", "valid record"),
        (b"null", "valid record"),
        (b"\xff\xfe{}", "Invalid JSON"),
        ('{"what": "é"}'.encode("latin-1"), "Invalid JSON"),
        (b'{"x": ' * 10_000 + b"1" + b"}" * 10_000, "recursion limit"),
        (b"[" * 10_000, "recursion limit"),
    ],
)
def test_what_is_no_json_object_is_refused(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(content)
    assert words in refusal(name, path)


def test_what_is_no_regular_file_of_a_records_size_is_refused_at_once(tmp_path: Path) -> None:
    started = time.monotonic()
    assert "does not exist" in refusal("graph", tmp_path / "none.json")
    assert "cannot be read: Is a directory" in refusal("graph", tmp_path)
    pipe, loop, large = tmp_path / "pipe.json", tmp_path / "loop.json", tmp_path / "large.json"
    os.mkfifo(pipe)
    assert "is not a regular file" in refusal("graph", pipe)
    loop.symlink_to(loop)
    assert "cannot be read: Too many levels of symbolic links" in refusal("graph", loop)
    with large.open("wb") as file:
        file.truncate(records.MAX_BYTES + 1)
    assert "has 67,108,865 bytes; a file of its kind has 67,108,864 at most" in refusal("graph", large)
    assert "is not a regular file" in refusal("graph", Path("/dev/zero"))
    assert time.monotonic() - started < 5


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret.json"
    path.write_text("{}")
    path.chmod(0)
    assert "Permission denied" in refusal("graph", path)


def test_a_link_to_a_record_is_read(tmp_path: Path) -> None:
    link = tmp_path / "link.json"
    link.symlink_to(SAMPLES / "graph.json")
    assert records.read(records.SIDECAR, link) == records.read(records.SIDECAR, SAMPLES / "graph.json")


def test_a_strange_or_endless_key_stays_in_one_line(tmp_path: Path) -> None:
    for key in ("a\nb", "x" * 100_000):
        line = refused("check", {**plain("check"), "feeds": {key: 3}}, tmp_path)
        assert "feeds" in line and len(line) < 1000


# ---- random data ----

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
DISTINCT = {id(form): form for form in FORMS.values()}.values()
ADAPTERS = [form if isinstance(form, TypeAdapter) else TypeAdapter(form) for form in DISTINCT]


def parsed_or_refused(data: bytes) -> None:
    for adapter in ADAPTERS:
        try:
            result = records.parse(adapter, data, Path("x.json"))
        except UserError as error:
            result = str(error)
        is_line = isinstance(result, str) and re.fullmatch(r"x\.json is not a valid record[^\n]*", result)
        assert is_line or isinstance(result, records.Record)


@given(json_values)
@settings(max_examples=50, deadline=None)
def test_random_json_is_a_record_or_a_user_error(value: Any) -> None:
    parsed_or_refused(json.dumps(value).encode())


@given(st.binary())
@settings(max_examples=50, deadline=None)
def test_random_bytes_are_a_user_error(data: bytes) -> None:
    parsed_or_refused(data)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_record_with_a_random_value_somewhere_is_a_record_or_a_user_error(draw: st.DataObject) -> None:
    data = plain(draw.draw(st.sampled_from(NAMES)))
    keys, _ = draw.draw(st.sampled_from(list(leaves(data))))
    keys = keys[: draw.draw(st.integers(1, len(keys)))]
    parsed_or_refused(json.dumps(changed(data, keys, draw.draw(json_values))).encode())


def test_what_can_be_made_again_is_no_record_where_it_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "x.check.json"
    assert records.read_if_valid(records.CheckRecord, path) is None
    path.write_text('{"passed": true}')
    assert records.read_if_valid(records.CheckRecord, path) is None
    path.write_bytes((SAMPLES / "check.json").read_bytes())
    record = records.read_if_valid(records.CheckRecord, path)
    assert record is not None and record.passed


def test_a_text_is_the_same_by_its_content() -> None:
    record = records.read(records.SimilarityRecord, SAMPLES / "similarity.json")
    request = records.SimilarityRequest(
        **{name: getattr(record, name) for name in records.SimilarityRequest.model_fields}
    )
    elsewhere = request.replaced(texts=request.texts.replaced(origin=("../../wiki.txt",)))
    other = request.replaced(texts=request.texts.replaced(sha256="0" * 64))
    assert record.is_for(request) and record.is_for(elsewhere)
    assert not record.is_for(other) and not record.is_for(request.replaced(length=request.length + 1))


def test_a_record_of_millions_of_wrong_values_is_refused_before_each_becomes_an_error(tmp_path: Path) -> None:
    file = tmp_path / "graph.json"
    file.write_text(json.dumps({**plain("graph"), "files": [0] * (records.base.MAX_VALUES + 1)}))
    assert "has more than 1,000,000 values" in refusal("graph", file)
    file.write_text(json.dumps({**plain("graph"), "files": [0] * 1000}))
    assert "at 'graph.files.0'" in refusal("graph", file)
