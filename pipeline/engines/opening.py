"""An artefact as a runner, by its suffix: .onnx in ONNX Runtime, .plan in TensorRT or TensorRT-RTX."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import store
from pipeline.runtime.runner import Runner
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
    store.read_sidecar(path)
    if path.suffix == ".onnx":
        return _graph(path, threads, provider)
    if path.suffix == ".plan":
        return _engine(path)
    raise UserError(f"{path} is neither a graph (.onnx) nor an engine (.plan)")


def _graph(path: Path, threads: int, provider: str) -> Runner:
    """A graph file, after a check that its external data stays in its folder."""
    from pipeline.graphs import graphfile
    from pipeline.runtime.onnxruntime import OnnxRunner, open_session

    graphfile.load(path)
    return OnnxRunner(path, open_session(path, path.parent, threads, provider))


def _engine(path: Path) -> Runner:
    from pipeline.runtime.tensorrt import TrtRunner

    return TrtRunner(path, plan_of(store.read_sidecar(path)))


def plan_of(record: dict[str, Any]) -> Plan:
    """What an engine's sidecar tells its runner."""
    from pipeline.runtime.runner import Limits
    from pipeline.runtime.tensorrt import Plan

    return Plan(
        backend=record["backend"],
        version=record["backend_version"],
        targets=tuple(record["targets"]),
        profiles=tuple(record["profiles"]),
        limits=Limits(*(record["ranges"][name][2] for name in ("batch", "length", "past", "wanted"))),
        weights=Path(record["folder"]) / record["graph"]["file"] if record["stripped"] else None,
    )
