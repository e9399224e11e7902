"""What stages write as arrays and graphs: ONNX, overlays of compensations, moments, hessians, statistics."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

from tests.fuzz.kinds import Kind

SKIP = "attn1+mlp2"


def kinds() -> list[Kind]:
    """Of graphs and of what is fitted and measured."""
    overlays = ("linear", "rank4", "bias", "fold+rank4")
    moments = {"block1-2.safetensors": "safetensors", "block1-2.json": "json"}
    hessians = {"hessians/layer1.safetensors": "safetensors", "hessians/layer1.json": "json"}
    return [
        Kind("ONNX", "base", {"base.fp32.onnx": "onnx"}, _graph, use_graph),
        Kind("ONNX", "sidecar", {"base.fp32.json": "json", "source.json": "json", "weights.json": "json"},
             _graph, use_sidecar),
        *(Kind("overlay", form, {"overlay.safetensors": "safetensors"}, _overlay(form), use_overlay)
          for form in overlays),
        Kind("moments", "place", moments, _moments, use_moments),
        Kind("hessians", "layer", hessians, _hessians, use_hessians),
        Kind("statistics", "similarity", {"similarity.json": "json", "similarity.npz": "bytes"},
             _similarity, use_similarity),
        Kind("statistics", "kept", {"text.npy": "bytes", "pairs.npz": "bytes", "questions.json.gz": "bytes"},
             _kept, use_kept),
    ]  # fmt: skip


# ---- graphs -----------------------------------------------------------------------------------------------


def _graph(folder: Path) -> None:
    from pipeline.graphs import export
    from pipeline.models.checkpoint import open_checkpoint
    from pipeline.store import write_json
    from pipeline.store.records import CheckpointSource
    from tests import tiny

    tiny.checkpoint(folder, num_hidden_layers=3)
    write_json(folder / "source.json", CheckpointSource(kind="folder", origin=str(folder)).plain())
    export.export_base(open_checkpoint(folder))
    assert (folder / "weights.json").is_file()


def use_graph(folder: Path, free: Path) -> None:
    """As `export`, `merge` and `build-engine` look at a graph."""
    from pipeline.engines import lint
    from pipeline.graphs import anatomy, graphfile
    from pipeline.graphs.passes.all_logits import AllLogitsPass
    from pipeline.graphs.passes.skip import SkipPass
    from pipeline.types import BASE, SkipSet

    path = folder / "base.fp32.onnx"
    model = graphfile.load(path)
    graphfile.data_files(model)
    lint.lint(model)
    anatomy.find(model, 3, BASE)
    SkipPass(SkipSet.parse(SKIP), 3)(model)
    AllLogitsPass()(model)
    import onnx_ir as ir

    (free / "cut.onnx").write_bytes(ir.to_proto(model).SerializeToString())


def use_sidecar(folder: Path, free: Path) -> None:
    """As `list`, `show` and `check` look at a graph's sidecar and its checkpoint's records."""
    from pipeline import store
    from pipeline.models.checkpoint import open_checkpoint

    path = folder / "base.fp32.onnx"
    store.sidecar(path, quick=True)
    store.graph_sidecar(path)
    store.variant(path)
    store.overlays(path)
    store.weight_paths(path)
    store.contents(path)
    opened = open_checkpoint(folder)
    assert opened.identity and opened.contents


# ---- overlays and moments ---------------------------------------------------------------------------------


def _overlay(form: str) -> Any:
    def build(folder: Path) -> None:
        from pipeline.types import SkipSet
        from tests import overlays, tiny

        tiny.checkpoint(folder, num_hidden_layers=3)
        shutil.move(overlays.of_form(folder, SkipSet.parse(SKIP), form), folder / "overlay.safetensors")

    return build


def use_overlay(folder: Path, free: Path) -> None:
    """As `export --compensation`, `show` and the reference read an overlay."""
    from pipeline.models import compensation
    from pipeline.types import SkipSet

    file = folder / "overlay.safetensors"
    compensation.contents(file)
    compensation.sizes([file])
    compensation.read(file, SkipSet.parse(SKIP))


def _moments(folder: Path) -> None:
    """Random sums, of a run of two layers in a tiny model, with the record that speaks for them."""
    import numpy as np
    from safetensors.numpy import save_file

    from pipeline.store import records
    from tests import tiny

    tiny.checkpoint(folder, num_hidden_layers=3)
    width, draw = 64, np.random.default_rng(0)
    shapes = {"mapped.gram": (65, 65), "mapped.cross": (65, 64), "folded.gram": (65, 65),
              "folded.cross": (65, 64), "between": (65, 64), "held.h": (5, width), "held.y": (5, width),
              "held.f": (5, width)}  # fmt: skip
    sums = {name: draw.normal(size=shape) for name, shape in shapes.items()}
    for name in ("mapped.gram", "folded.gram"):
        sums[name] = sums[name] @ sums[name].T
        sums[name][-1, -1] = 336
    save_file(sums, folder / "block1-2.safetensors")
    record = records.MomentsRecord(
        model="tiny", weights="content:abc", contents="0" * 64, texts=records.TextSource(origin="words"),
        place="block1-2", samples=24, length=16, held_count=3, outlier=1.0, tokens=336, energy=1.0,
        stream=1.0, sha256="0" * 64,
    )  # fmt: skip
    (folder / "block1-2.json").write_text(json.dumps(record.plain()), encoding="utf-8")


def use_moments(folder: Path, free: Path) -> None:
    """As `compensate --moments` reads the sums of a place, and fits a map by them."""
    from types import SimpleNamespace

    from pipeline.calib.compensation import maps
    from pipeline.calib.compensation.moment_files import MomentFiles
    from pipeline.models.checkpoint import open_checkpoint
    from pipeline.models.compensation import MapPlace

    text: Any = SimpleNamespace(fitted=None)
    files = MomentFiles(open_checkpoint(folder), text, _nothing, folder)
    moments = files.read(MapPlace.parse("block1-2"))
    maps.linear(moments.mapped, 0.1)


class _MeasuredAnewError(Exception):
    """The model would be run."""


def _hessian_files(folder: Path, open_reference: Any) -> Any:
    import numpy as np

    from pipeline.calib.compensation.moment_files import MomentsText
    from pipeline.calib.hessian_files import HessianFiles
    from pipeline.models import texts
    from pipeline.models.checkpoint import open_checkpoint
    from pipeline.store import records

    tokens = np.random.default_rng(0).integers(0, 64, (3, 16))
    text = MomentsText(tokens, tokens[:0], texts.OWN, records.TextSource(origin="words"))
    files = HessianFiles(open_checkpoint(folder / "m"), text, open_reference)
    files.folder = folder / "hessians"
    return files


def _hessians(folder: Path) -> None:
    """Those of a tiny model on a few tokens."""
    from pipeline.models.reference import Reference
    from tests import tiny

    tiny.checkpoint(folder / "m", num_hidden_layers=2)
    _hessian_files(folder, lambda: Reference(folder / "m")).make()


def use_hessians(folder: Path, free: Path) -> None:
    """As `export --method gptq` finds them, or would measure them anew, reads two and rounds by them."""
    import numpy as np

    from pipeline.models.quantisation import descent
    from pipeline.models.quantisation.gptq import gptq

    def measured_anew() -> Any:
        raise _MeasuredAnewError

    files = _hessian_files(folder, measured_anew)
    with contextlib.suppress(_MeasuredAnewError):
        files.make()
    weight = np.random.default_rng(0).normal(0, 0.1, (64, 8)).astype(np.float32)
    for name in ("self_attn.k_proj", "mlp.gate_proj"):
        moments = files.of(f"model.layers.1.{name}.weight", len(weight))
        descent.improved(weight, gptq(weight, moments, 4, 32), moments, 4)


def _nothing() -> Any:
    raise AssertionError("nothing is gathered here")


# ---- arrays -----------------------------------------------------------------------------------------------


def _similarity(folder: Path) -> None:
    import numpy as np

    from pipeline.calib import measures, similarity
    from pipeline.calib.measures import Sums
    from tests import tiny

    sums, draw = Sums(), np.random.default_rng(0)
    for _ in range(3):
        streams = np.cumsum(draw.normal(size=(4, 8, 16)), axis=0)
        sums.add(measures.measure(streams, (streams[:-1] + streams[1:]) / 2, 2))
    folder.mkdir()
    similarity.write(folder, tiny.similarity_request(wanted=3, tokens=24), sums)


def use_similarity(folder: Path, free: Path) -> None:
    """As the selectors read statistics; the record speaks for the arrays, whatever these are."""
    from pipeline import store
    from pipeline.calib import selectors, similarity

    record = folder / "similarity.json"
    is_small = not record.is_symlink() and record.is_file() and record.stat().st_size < 2**20
    text = record.read_text(encoding="utf-8", errors="replace") if is_small else ""
    arrays = folder / "similarity.npz"
    known = "arrays_sha256"
    if (
        text.startswith("{")
        and not arrays.is_symlink()
        and arrays.is_file()
        and arrays.stat().st_size < 2**20
        and text.count(known) == 1
    ):
        place = text.index(known) + len(known)
        old = text[place : place + 80].partition(': "')[2].partition('"')[0]
        if len(old) == 64:
            record.write_text(text.replace(old, store.sha256(arrays)), encoding="utf-8")
    statistics = similarity.read(folder, "abc")
    for kind in ("layer", "attn", "mlp"):
        statistics.cosine(kind), statistics.cosine_error(kind)
    similarity.table("tiny", statistics)
    similarity.block_curves(statistics.distances("all"))
    assert selectors is not None


def _kept(folder: Path) -> None:
    """What `score` and `calibrate` keep of what they tokenised."""
    import numpy as np
    from lm_eval.api.instance import Instance

    from pipeline.evals.score import cached_task

    folder.mkdir()
    np.save(folder / "text.npy", np.array([1, 1, 5, 6, 7, 8], np.int64))
    ones = np.array([1, 2], np.int32)
    np.savez(folder / "pairs.npz", contexts=np.array([4, 5, 6], np.int32), context_lengths=ones,
             context_of=np.array([0, 1], np.int32), continuations=np.array([7, 8, 9], np.int32),
             continuation_lengths=ones)  # fmt: skip
    one = Instance("loglikelihood", {}, ("a", " b"), 0, ("task", 0, 1))
    cached_task.write_instances(folder / "questions.json.gz", [one])


def use_kept(folder: Path, free: Path) -> None:
    """As a second run finds what the first kept."""
    from pipeline.evals.score import cached_task, tokens
    from pipeline.models import texts

    cached_task.read_instances(folder / "questions.json.gz", {0: {}})
    tokens.read_kept(folder / "pairs.npz")
    texts.read_kept(folder / "text.npy")
