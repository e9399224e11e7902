"""An artefact as a runner, by its suffix: .onnx in ONNX Runtime, .plan in TensorRT or TensorRT-RTX."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import store
from pipeline.runtime.runner import Runner
from pipeline.store.records import EngineRecord
from pipeline.types import UserError

if TYPE_CHECKING:
    from pipeline.runtime.tensorrt import Plan


def open_runner(path: Path, threads: int = 0, provider: str = "cpu") -> Runner:
    """The artefact, loaded and ready to run.

    Args:
        path: a graph (.onnx) or an engine (.plan), with its sidecar.
        threads: of ONNX Runtime; 0 is one a core. An engine has none.
        provider: of ONNX Runtime, 'cpu' or 'cuda'. An engine runs on its GPU.

    Raises:
        UserError: no such artefact, or this machine cannot run it (with the reason).
    """
    record = store.sidecar(path)
    if isinstance(record, EngineRecord):
        return _engine(path, record)
    if path.suffix == ".onnx":
        return _graph(path, threads, provider)
    raise UserError(f"{path} is neither a graph (.onnx) nor an engine (.plan)")


def _graph(path: Path, threads: int, provider: str) -> Runner:
    """A graph file, after a check that its external data stays in its folder."""
    from pipeline.graphs import embedding, graphfile
    from pipeline.runtime.onnxruntime import OnnxRunner, open_session

    rows = embedding.rows(graphfile.load(path))
    runner = OnnxRunner(path, open_session(path, path.parent, threads, provider))
    runner.embedding_rows = rows
    return runner


def _engine(path: Path, record: EngineRecord) -> Runner:
    if record.max_tokens is not None:
        raise UserError(
            f"{path} has a static cache: such engines are built here and not yet run; "
            "take the engine of its twin, whose cache grows"
        )
    from pipeline.graphs import embedding, graphfile
    from pipeline.runtime.tensorrt import TrtRunner

    runner = TrtRunner(path, plan_of(record, path))
    graph = store.resolved(record.folder, path) / record.graph.file
    if graph.is_file():  # an engine cannot tell, and reads beyond its embedding without a word
        runner.embedding_rows = embedding.rows(graphfile.load(graph))
    return runner


def plan_of(record: EngineRecord, path: Path) -> Plan:
    """What an engine's runner must know of it.

    Args:
        record: its sidecar.
        path: the plan: a stripped one takes its weights from the graph that the sidecar names from there.
    """
    from pipeline.runtime.runner import Limits
    from pipeline.runtime.tensorrt import Plan

    sizes = record.ranges
    graph = store.resolved(record.folder, path) / record.graph.file
    return Plan(
        backend=record.backend,
        version=record.backend_version,
        targets=record.targets,
        profiles=record.profiles,
        limits=Limits(sizes.batch[2], sizes.length[2], sizes.past[2], sizes.wanted[2]),
        weights=graph if record.stripped else None,
    )
