"""One version of NAME and NAME_generate, written into a staging folder."""

from __future__ import annotations

import datetime
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline import store
from pipeline.engines import opening
from pipeline.graphs import embedding, graphfile
from pipeline.models import costs
from pipeline.models.config import read_config
from pipeline.runtime.generation.prompts import Prompts
from pipeline.ship.triton import model_config, repack, repository
from pipeline.ship.triton.in_triton.artefact import FILE, ServedArtefact
from pipeline.ship.triton.in_triton.parameters import Parameters
from pipeline.store.records import EngineRecord, GraphRecord, ShippedFile, ShippedVersion, ShipSettings
from pipeline.types import UserError, Variant

PACKAGE = Path(__file__).parents[2]
IN_TRITON = "ship/triton/in_triton"
CARRIED = (
    "__init__.py",
    "types.py",
    "runtime",
    "ship/__init__.py",
    "ship/triton/__init__.py",
    IN_TRITON,
)
"""What NAME_generate carries of this package: what `pipeline generate` runs, and the Triton model."""
_OF_VARIANT = ("model", "variant", "skip", "adapter", "compensation", "quantisation", "head")


@dataclass(frozen=True, slots=True)
class Shippable:
    """An artefact that may be shipped.

    Attributes:
        path: the graph or engine.
        sidecar: what it is.
        variant: that it computes.
        graph: itself, or the graph that the engine was built from.
        prompts: tokenizer and chat template of its model.
        check: what its check said, in words.
    """

    path: Path
    sidecar: GraphRecord | EngineRecord
    variant: Variant
    graph: Path
    prompts: Prompts
    check: str

    @property
    def engine(self) -> EngineRecord | None:
        """The sidecar, where it is an engine."""
        return self.sidecar if isinstance(self.sidecar, EngineRecord) else None

    @property
    def kind(self) -> str:
        """'onnx graph', 'tensorrt plan' or 'tensorrt-rtx plan'."""
        return f"{self.engine.backend} plan" if self.engine else "onnx graph"

    @property
    def has_raw_model(self) -> bool:
        """Whether NAME is there too: Triton's tensorrt backend cannot load a TensorRT-RTX plan."""
        return self.engine is None or self.engine.backend != "tensorrt-rtx"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a version goes.

    Attributes:
        staging: the folder that becomes the repository, or is moved into it.
        record: SHIP.json of the repository.
        name: NAME of the model.
        number: of the version.
    """

    staging: Path
    record: Path
    name: str
    number: int

    @property
    def text_model(self) -> Path:
        """The folder of NAME_generate."""
        return self.staging / (self.name + repository.ENDING)


def write(artefact: Shippable, place: Place, settings: ShipSettings) -> ShippedVersion:
    """Writes the models of one version.

    Raises:
        UserError: the artefact cannot be copied whole, or Triton cannot serve its tensors.
    """
    home = (place.staging / place.name if artefact.has_raw_model else place.text_model) / str(place.number)
    served, files = _write_artefact(artefact, place.staging, home)
    if artefact.has_raw_model:
        engine = artefact.engine
        rows = min(settings.rows, engine.ranges.batch[2]) if engine else settings.rows
        text = model_config.raw(place.name, artefact.graph, engine is not None, rows, place.number)
        _write_config(place.staging / place.name, place.number, text)
    folder = _write_text_model(artefact.prompts, place, served, settings)
    sidecar, config = artefact.sidecar, read_config(artefact.graph.parent)
    return ShippedVersion.model_validate(
        {
            **{name: getattr(sidecar, name) for name in _OF_VARIANT},
            "precision": sidecar.precision,
            "sha256": sidecar.sha256,
            "settings": settings,
            "kind": artefact.kind,
            "artefact": store.relative(artefact.path, place.record),
            "weights": sidecar.weights,
            "contents": store.contents(artefact.path),
            "check": artefact.check,
            "raw_model": artefact.has_raw_model,
            "plan": served.plan,
            "graph": served.graph,
            "kv_bytes_per_token": costs.cache_bytes(config, artefact.variant.skip, sidecar.precision),
            "needs": _needs(artefact),
            "shipped": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "files": repository.digests(place.staging, folder, known=files),
        }
    )


def _write_artefact(
    artefact: Shippable, staging: Path, home: Path
) -> tuple[ServedArtefact, dict[str, ShippedFile]]:
    """Writes the graph with the weights that it uses, and the plan; returns where they lie, and digests."""
    home.mkdir(parents=True)
    plan = home / "model.plan" if artefact.engine else None
    graph = home / ("graph" if plan else "model.onnx")
    repack.repack(artefact.graph, graph)
    if plan:
        shutil.copyfile(artefact.path, plan)
        if store.sha256(plan) != artefact.sidecar.sha256:
            raise UserError(f"{plan} does not read back as {artefact.path}; the disk is failing")
        shutil.copyfile(store.sidecar_path(artefact.path), store.sidecar_path(plan))
    files = repository.digests(staging, home)
    served = ServedArtefact(
        graph=str((graph / "model.onnx").relative_to(staging)),
        files={name: file.sha256 for name, file in files.items()},
        plan=str(plan.relative_to(staging)) if plan else None,
        engine=opening.plan_of(artefact.engine, artefact.path) if artefact.engine else None,
        embedding_rows=embedding.rows(graphfile.load(artefact.graph)),
    )
    return served, files


def _write_text_model(prompts: Prompts, place: Place, served: ServedArtefact, settings: ShipSettings) -> Path:
    """model.py, the code that it runs, the tokenizer, artefact.json; returns the version's folder."""
    folder = place.text_model / str(place.number)
    folder.mkdir(parents=True, exist_ok=True)
    prompts.save(folder)
    shutil.copyfile(PACKAGE / IN_TRITON / "model.py", folder / "model.py")
    for name in CARRIED:
        _carry(PACKAGE / name, folder / "pipeline" / name)
    store.write_json(folder / FILE, served.plain())
    parameters = Parameters(settings.rows, settings.cache_tokens, settings.queue)
    text = model_config.generate(place.text_model.name, place.number, asdict(parameters))
    _write_config(place.text_model, place.number, text)
    return folder


def _carry(source: Path, target: Path) -> None:
    """Copies a module or a folder of modules."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copyfile(source, target)


def _write_config(model: Path, number: int, text: str) -> None:
    """config.pbtxt serves the newest version. Each version's own stays in configs/, to go back to."""
    (model / "configs").mkdir(parents=True, exist_ok=True)
    (model / "configs" / f"v{number}.pbtxt").write_text(text, encoding="utf-8")
    (model / "config.pbtxt").write_text(text, encoding="utf-8")


def _needs(artefact: Shippable) -> dict[str, str]:
    """What the serving machine must have, beside Triton itself."""
    engine = artefact.engine
    needs = {"python": "3.11 or newer in the server's image (Triton 24.11 and later)"}
    for package in ("numpy", "tokenizers", "jinja2", "polygraphy" if engine else "onnxruntime"):
        needs[package] = store.version(package) or store.version(f"{package}-gpu") or "any"
    if engine:
        needs[engine.backend] = f"{engine.backend_version}, exactly"
        needs["gpu"] = ", ".join(engine.targets)
    return needs
