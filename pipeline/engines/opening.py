"""An artefact as a runner, by its suffix: .onnx in ONNX Runtime, .plan in TensorRT or TensorRT-RTX."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import store
from pipeline.models import compensation, costs
from pipeline.models.config import read_config
from pipeline.runtime import device_memory
from pipeline.runtime.runner import Runner
from pipeline.store.records import EngineRecord, GraphRecord
from pipeline.types import BASE, UserError

if TYPE_CHECKING:
    from pipeline.runtime.tensorrt import Plan


def open_runner(path: Path, threads: int = 0, provider: str = "cpu", exact: bool = False) -> Runner:
    """The artefact, loaded and ready to run.

    Args:
        path: a graph (.onnx) or an engine (.plan), with its sidecar.
        threads: of ONNX Runtime; 0 is one a core. An engine has none.
        provider: of ONNX Runtime, 'cpu' or 'cuda'. An engine runs on its GPU.
        exact: as `onnxruntime.open_session`; an engine has its own kernels.

    Raises:
        UserError: no such artefact, or this machine cannot run it (with the reason); its weights are more
            than --device-memory gives.
    """
    record = store.sidecar(path)
    require_room([path], provider)
    if isinstance(record, EngineRecord):
        return _engine(path, record)
    if path.suffix == ".onnx":
        return _graph(path, threads, provider, exact)
    raise UserError(f"{path} is neither a graph (.onnx) nor an engine (.plan)")


def require_room(paths: Sequence[Path], provider: str, models: int = 1) -> None:
    """Refuses artefacts whose weights, at once on the GPU, are more than --device-memory gives.

    Args:
        paths: graphs and engines; what runs on the CPU is not counted, nor whose size is not known.
        provider: of ONNX Runtime.
        models: that are loaded of each variant, with as many bytes of weights: PyTorch's beside the graph.

    Raises:
        UserError: they do not fit.
    """
    if device_memory.bound() is None:
        return
    on_gpu = [path for path in paths if provider == "cuda" or path.suffix == ".plan"]
    if not on_gpu:
        return
    what = f"the weights of {on_gpu[0]}" if len(on_gpu) == 1 else f"the weights of {len(on_gpu)} artefacts"
    device_memory.require_room(what, models * sum(map(weight_bytes, on_gpu)))


def weight_bytes(path: Path) -> int:
    """Bytes of an artefact's weights when it is loaded; 0 where its config.json does not say.

    Args:
        path: a graph, whose variants have the weights of their base; or an engine.
    """
    record = store.sidecar(path, quick=True)
    if isinstance(record, EngineRecord) and not record.stripped:
        return path.stat().st_size
    of = record.as_variant() if isinstance(record, GraphRecord | EngineRecord) else None
    try:
        config = read_config(store.checkpoint_folder(path))
        if of is None:
            return costs.weight_bytes(config, BASE, record.precision_name)
        maps = compensation.sizes(store.overlays(path))
        return costs.weight_bytes(config, of.skip, of.precision_name, maps)
    except UserError:
        return 0


def _graph(path: Path, threads: int, provider: str, exact: bool) -> Runner:
    """A graph file, after a check that its external data stays in its folder."""
    from pipeline.engines import folding
    from pipeline.graphs import embedding, graphfile
    from pipeline.runtime.onnxruntime import OnnxRunner, open_session

    model = graphfile.load(path)
    rows = embedding.rows(model)
    unfolded = {} if folding.folds(model) else {"fold": False}
    runner = OnnxRunner(path, open_session(path, path.parent, threads, provider, **unfolded, exact=exact))
    runner.embedding_rows = rows
    return runner


def _engine(path: Path, record: EngineRecord) -> Runner:
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
