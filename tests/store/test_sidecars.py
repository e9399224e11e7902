"""Sidecars: written beside an artefact, and read only where they are the artefact's own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline import store
from pipeline.store import Project, records
from pipeline.types import SkipSet, UserError, Variant
from tests import tiny

DIGEST = "0" * 64
VARIANT = Variant("m é", SkipSet.parse("attn2"), "fp16")


def artefact(path: Path, content: bytes = b"artefact") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def graph_fields(variant: Variant = VARIANT, **changes: Any) -> dict[str, Any]:
    fields = {
        "artefact": "graph",
        **records.variant_fields(variant),
        "contract": "authored",
        "weights": store.weights.MARK + DIGEST,
        "num_layers": 3,
    }
    return {**fields, **changes}


def graph(variant: Variant = VARIANT, **changes: Any) -> Path:
    path = artefact(store.graph_path(Project().graphs(variant.model), variant))
    store.write_sidecar(path, graph_fields(variant, **changes))
    return path


def engine(folder: str = "../../../graphs/m é", root: Path = Path(), **changes: Any) -> Path:
    path = artefact(Project(root).engine(VARIANT.model, VARIANT.name, "tensorrt-rtx", "sm80", "fp16"))
    fields = {
        "artefact": "engine",
        **records.variant_fields(VARIANT),
        "folder": folder,
        "graph": {"file": "attn2.fp16.onnx", "sha256": DIGEST},
        "weights": DIGEST,
        "backend": "tensorrt-rtx",
        "backend_version": "1.7",
        "targets": ["sm80"],
        "ranges": {"batch": [1, 1, 8], "length": [1, 9, 9], "past": [0, 9, 9], "wanted": [1, 1, 9]},
        "stripped": False,
    }
    store.write_sidecar(path, {**fields, **changes})
    return path


def merged() -> Path:
    path = artefact(Project().graphs("m é") / "merged-2-abc.fp32.onnx")
    fields = {"artefact": "merged", "model": "m é", "precision": "fp32", "contract": "authored"}
    store.write_sidecar(path, {**fields, "weights": DIGEST, "num_layers": 3, "variants": {"base": DIGEST}})
    return path


def test_a_sidecar_names_its_artefact_by_size_and_digest(workdir: Path) -> None:
    path = graph()
    record = store.graph_sidecar(path)
    assert (record.file, record.bytes, record.sha256) == ("attn2.fp16.onnx", 8, store.sha256(path))
    assert store.sidecar(path) == record and store.variant(path) == VARIANT
    written = store.write_sidecar(path, graph_fields(num_layers=4))
    assert isinstance(written, records.GraphRecord) and written.num_layers == 4


def test_fields_of_no_sidecar_are_not_taken_for_one(workdir: Path) -> None:
    with pytest.raises(UserError, match="num_layers"):
        store.write_sidecar(artefact(Path("graphs/m/x.onnx")), graph_fields(num_layers=-1))


def test_an_artefact_that_its_sidecar_disowns_is_refused(workdir: Path) -> None:
    path = graph()
    artefact(path, b"ARTEFACT")  # as large as before
    assert store.sidecar(path, quick=True).bytes == 8
    with pytest.raises(UserError, match="is not what its sidecar describes"):
        store.sidecar(path)
    artefact(path, b"another size")
    with pytest.raises(UserError, match="is not what its sidecar describes"):
        store.sidecar(path, quick=True)
    path.unlink()
    with pytest.raises(UserError, match="does not exist; `pipeline list` shows what does"):
        store.sidecar(path)
    with pytest.raises(UserError, match=r"has no sidecar bare\.json"):
        store.sidecar(artefact(Path("graphs/m/bare.onnx")))


def test_each_kind_is_told_from_the_others(workdir: Path) -> None:
    assert isinstance(store.sidecar(merged()), records.MergedRecord)
    with pytest.raises(UserError, match="is no variant's graph but a merged graph"):
        store.graph_sidecar(merged())
    with pytest.raises(UserError, match="is no variant's graph but an engine"):
        store.graph_sidecar(engine())
    with pytest.raises(UserError, match="is no engine but a graph"):
        store.engine_sidecar(graph())
    assert store.engine_sidecar(engine()).backend == "tensorrt-rtx"


def test_several_variants_are_not_one(workdir: Path) -> None:
    for path in (merged(), engine(skip=None, variants={"base": DIGEST})):
        with pytest.raises(UserError, match="holds several variants"):
            store.variant(path)
    assert store.variant(engine()) == VARIANT


def test_an_artefact_is_current_where_it_matches_what_is_wanted(workdir: Path) -> None:
    path = graph()
    wanted = graph_fields()
    assert store.is_current(path, wanted) and not store.is_current(path, {**wanted, "num_layers": 4})
    assert not store.is_current(path, {**wanted, "config": DIGEST})
    artefact(path, b"changed!")
    assert not store.is_current(path, wanted) and not store.is_current(Path("none.onnx"), {})


@pytest.mark.parametrize("folder", ["../../../graphs/m é", "graphs/m é"])
def test_an_engine_finds_its_checkpoint_from_any_directory(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    """Version 0.1 named the folder from the project's own; it is relative to the sidecar now."""
    root = workdir / "a project"
    (root / "graphs" / "m é").mkdir(parents=True)
    plan = engine(folder, root)
    assert store.checkpoint_folder(plan).resolve() == root / "graphs" / "m é"
    monkeypatch.chdir("/")
    assert store.checkpoint_folder(plan) == (root / "graphs" / "m é").relative_to("/")
    assert store.checkpoint_folder(root / "graphs/m é/x.onnx") == root / "graphs/m é"


def test_a_check_counts_for_one_content_of_the_artefact(workdir: Path) -> None:
    path = graph()
    assert not store.check_passed(path)
    result = tiny.passed(path)
    assert result == store.result_of(path, "check") and store.check_passed(path)
    assert store.check_passed(path.resolve())
    assert not store.check_passed(path, DIGEST)
    record = records.read(records.CheckRecord, result)
    assert record.artefact == "../../../graphs/m é/attn2.fp16.onnx"
    store.write_json(result, record.replaced(passed=False).plain())
    assert not store.check_passed(path)
    store.write_json(result, record.plain())
    artefact(path, b"ARTEFACT")
    assert not store.check_passed(path)
    result.write_text("{}")
    assert not store.check_passed(path)  # a result of another form proves nothing: `check` is run again


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compensation": "linear"}, "do not fit together|is not the variant"),
        ({"compensation": "linear", "variant": "attn2~linear"}, "do not fit together"),
        ({"compensated": {"file": "x.safetensors", "sha256": DIGEST}}, "do not fit together"),
        ({"healed": {"file": "x.safetensors", "sha256": DIGEST}}, "do not fit together"),
        ({"skip": {"attention": [1, 2], "mlp": []}}, "'?attn2'? is not the variant"),
        ({"variant": "attn1"}, "attn1 is not the variant"),
    ],
)
def test_a_sidecar_that_says_two_things_is_refused(
    workdir: Path, changes: dict[str, object], message: str
) -> None:
    """What reads its name, its skip set or its files would each take it for something else."""
    path = graph()
    record = store.sidecar_path(path)
    store.write_json(record, {**store.read_json(record), **changes})
    with pytest.raises(UserError, match=message) as error:
        store.graph_sidecar(path)
    assert len(str(error.value).splitlines()) == 1


def test_the_weights_of_a_healed_artefact_are_those_that_it_was_made_with(workdir: Path) -> None:
    assert store.overlays(graph()) == ()
    healed = Variant("m é", VARIANT.skip, "fp16", "heal")
    weights = artefact(Path("graphs/m é/attn2~heal.safetensors"), b"weights")
    path = graph(healed, healed={"file": weights.name, "sha256": store.sha256(weights)})
    assert store.overlays(path) == (weights,)
    artefact(weights, b"changed")
    command = r"`pipeline export … --skip attn2 --adapter heal --precision fp16`"
    with pytest.raises(UserError, match=command):
        store.overlays(path)
    weights.unlink()
    with pytest.raises(UserError, match=r"is not what attn2~heal\.fp16\.onnx was made with"):
        store.overlays(path)


def test_a_healed_engine_has_the_weights_of_its_graph(workdir: Path) -> None:
    """It is compared with PyTorch as healed as itself."""
    healed = Variant("m é", VARIANT.skip, "fp16", "heal")
    weights = artefact(Path("graphs/m é/attn2~heal.safetensors"), b"weights")
    source = graph(healed, healed={"file": weights.name, "sha256": store.sha256(weights)})
    path = engine(
        **records.variant_fields(healed), graph={"file": source.name, "sha256": store.sha256(source)}
    )
    assert store.overlays(path) == (weights,)
    assert store.overlays(engine()) == ()
    weights.unlink()
    with pytest.raises(UserError, match=r"is not what attn2~heal\.fp16\.onnx was made with"):
        store.overlays(
            engine(**records.variant_fields(healed), graph={"file": source.name, "sha256": DIGEST})
        )


def test_a_graph_under_another_variants_name_is_refused(workdir: Path) -> None:
    """`cp attn2.… mlp1.…`, both files: its score stood in the table as that of mlp1."""
    path = graph()
    copies = {
        name: path.with_name(f"{name}.onnx") for name in ("mlp1.fp16", "attn2.fp32", "attn2~a.fp16", "my")
    }
    for copy in copies.values():
        shutil.copy(path, copy)
        shutil.copy(store.sidecar_path(path), store.sidecar_path(copy))
    for copy in (copies[name] for name in ("mlp1.fp16", "attn2.fp32", "attn2~a.fp16")):
        with pytest.raises(UserError, match=r"is attn2\.fp16\.onnx under another variant's name; remove it"):
            store.sidecar(copy, quick=True)
    assert store.variant(copies["my"]) == VARIANT  # a name of the user's own says nothing wrong
