from __future__ import annotations

import os
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from pipeline import __version__, store
from pipeline.graphs import export, graphfile
from pipeline.models import checkpoint
from pipeline.types import UserError
from tests import tiny


def test_graphs_from_outside_are_read_with_suspicion(workdir: Path) -> None:
    base_model = checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny")))
    path = export.export_base(base_model)
    proto = onnx.load(str(path), load_external_data=False)
    for location in ("../../etc/passwd", "/etc/passwd", "sub/model.safetensors"):
        for entry in next(t for t in proto.graph.initializer if t.external_data).external_data:
            if entry.key == "location":
                entry.value = location
        evil = path.with_name("evil.onnx")
        evil.write_bytes(proto.SerializeToString())
        with pytest.raises(UserError, match="outside the graph's folder"):
            graphfile.load(evil)
    (path.parent / "link.safetensors").symlink_to("/etc/passwd")
    for entry in next(t for t in proto.graph.initializer if t.external_data).external_data:
        if entry.key == "location":
            entry.value = "link.safetensors"
    evil.write_bytes(proto.SerializeToString())
    with pytest.raises(UserError, match="outside the graph's folder"):
        graphfile.load(evil)
    for junk in (b"hello", b"", b"\x08\x07" * 9, os.urandom(999)):
        evil.write_bytes(junk)
        with pytest.raises(UserError, match="is not an ONNX"):
            graphfile.load(evil)
    with (base_model.folder / "model.safetensors").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(UserError, match="truncated"):
        graphfile.load(path)


def test_a_sidecar_that_does_not_match_is_refused(workdir: Path) -> None:
    path = export.export_base(checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny"))))
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(UserError, match="is not what its sidecar describes"):
        store.sidecar(path)
    store.sidecar_path(path).unlink()
    with pytest.raises(UserError, match="has no sidecar"):
        store.sidecar(path)


def test_a_saved_graph_reads_back_with_its_sidecar(workdir: Path) -> None:
    path = export.export_base(checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny"))))
    model, record = graphfile.load(path), store.graph_sidecar(path)
    copy = path.with_name("copy.fp32.onnx")
    graphfile.save(model, copy, record.plain())
    assert store.graph_sidecar(copy) == record.replaced(file=copy.name)
    assert ir.to_proto(graphfile.load(copy)) == ir.to_proto(model)
    assert record.tools == graphfile.tools() and record.tools["skip-pipeline"] == __version__
    assert record.source is not None and record.source.kind == "folder"


def test_cache_inputs_are_known_by_their_names(workdir: Path) -> None:
    path = export.export_base(checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny"))))
    caches = [value.name for value in graphfile.load(path).graph.inputs if graphfile.is_cache(value)]
    assert caches == [f"past_key_values.{i}.{x}" for i in range(2) for x in ("key", "value")]
