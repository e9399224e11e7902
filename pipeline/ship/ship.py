"""Stage: graphs and plans → a Triton model repository.

A variant becomes two models: NAME, its tensors as they are, and NAME_generate, text in and text out. Everything is
written beside the repository first and renamed into it; SHIP.json, written last, says what belongs to it.
"""

from __future__ import annotations

import datetime
import logging
import re
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.engines import opening
from pipeline.evals import passed as servable
from pipeline.models import costs, tokenizer
from pipeline.runtime.generation.prompts import Prompts
from pipeline.ship.triton import model_config, page, repack, repository
from pipeline.types import UserError

log = logging.getLogger(__name__)
PACKAGE = Path(__file__).parent.parent
IN_TRITON = "ship/triton/in_triton"
CARRIED = ("__init__.py", "types.py", "runtime", IN_TRITON)
"""What of this package NAME_generate carries: the code that `pipeline generate` runs, and what answers Triton's requests."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How NAME_generate runs; users may change them later in its config.pbtxt.

    Attributes:
        rows: requests side by side at most.
        cache_tokens: tokens of keys and values that the batch may need at most.
        queue: requests that wait at most.
    """

    rows: int = 16
    cache_tokens: int = 16_384
    queue: int = 128

    def __post_init__(self) -> None:
        for name in ("rows", "cache_tokens", "queue"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)} is not above 0")


def ship(
    artefacts: list[Path],
    folder: Path,
    name: str | None = None,
    unchecked: bool = False,
    settings: Settings | None = None,
) -> dict[str, Any]:
    """Writes the artefacts into the repository, each as the next version of its name; what is there unchanged stays.

    Args:
        artefacts: graphs and plans of variants.
        folder: the model repository; made where it is missing.
        name: of the model; with several artefacts the beginning of their names.
        unchecked: take artefacts that have passed no check, and record that.

    Returns:
        SHIP.json as it stands now, with "shipped": [[name, version], …] of this call.

    Raises:
        UserError: an artefact cannot be served, or the folder holds something else. Nothing is changed then.
    """
    settings = settings or Settings()
    named = {_name(path, name, len(artefacts) > 1): path for path in artefacts}
    if len(named) < len(artefacts):
        raise UserError("two of these artefacts would get the same name; ship them one by one with --name")
    records = {path: _accepted(path, unchecked) for path in artefacts}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with store.lock(folder.parent):
        for left in folder.parent.glob(f".{folder.name}.*.tmp"):
            shutil.rmtree(left)
        manifest = repository.open_or_new(folder)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
        try:
            shipped = [
                _stage(staging, manifest, one, path, records[path], settings) for one, path in named.items()
            ]
            page.write(staging, manifest)
            repository.install(staging, folder, manifest)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return {**manifest, "shipped": shipped}


# ---- what may be shipped --------------------------------------------------------------------------------------------


def _name(path: Path, name: str | None, several: bool) -> str:
    variant = store.variant_of(store.read_sidecar(path, quick=True))
    stem = name or variant.model
    full = re.sub(r"[^\w.-]", "_", f"{stem}-{variant.name}" if several or name is None else stem)
    if full.endswith("_generate"):
        raise UserError(f"--name {full} ends in _generate, which is the text model's own ending")
    return store.plain_name(full)


def _accepted(path: Path, unchecked: bool) -> dict[str, Any]:
    """The artefact's sidecar, with the graph that it is or was built from, its tokenizer, and what its check said.

    Raises:
        UserError: it cannot be served, or has passed no check.
    """
    record = store.read_sidecar(path)
    if "variants" in record:
        raise UserError(f"{path} holds several variants; ship the graphs that it was merged from")
    if record.get("stripped"):
        raise UserError(f"{path} was built without its weights; build it again without --strip-weights")
    servable.variants(path, unchecked)
    passed = store.check_passed(path, record["sha256"])
    folder = store.checkpoint_folder(path)
    graph = path if path.suffix == ".onnx" else folder / record["graph"]["file"]
    if record.get("contract") == "optimum" and not _has_cache(graph) and not servable.has_no_attention(graph):
        raise UserError(f"{path} has no cache to generate with; make it with `pipeline export`")
    told = {
        "check": "passed" if passed else "not checked",
        "graph_path": graph,
        "prompts": tokenizer.prompts(folder),
    }
    return {**record, **told}


def _has_cache(graph: Path) -> bool:
    from pipeline.graphs import graphfile

    return any(
        (value.name or "").startswith("past_key_values.") for value in graphfile.load(graph).graph.inputs
    )


# ---- one variant ----------------------------------------------------------------------------------------------------


def _stage(
    staging: Path, manifest: dict[str, Any], name: str, path: Path, record: dict[str, Any], settings: Settings
) -> tuple[str, int]:
    """Writes the next version of NAME and NAME_generate into the staging folder and the manifest: (name, version)."""
    model = manifest["models"].setdefault(name, {"generate": f"{name}_generate", "versions": {}})
    wanted = {"sha256": record["sha256"], "settings": asdict(settings)}
    same = [version for version, told in model["versions"].items() if wanted.items() <= told.items()]
    if same:
        log.info("%s version %s is this very artefact; nothing to do", name, same[-1])
        return name, int(same[-1])
    is_rtx = (
        path.suffix == ".plan" and record["backend"] == "tensorrt-rtx"
    )  # Triton's tensorrt backend cannot load these
    kind = "onnx graph" if path.suffix == ".onnx" else f"{record['backend']} plan"
    if others := {told["kind"] for told in model["versions"].values()} - {kind}:
        raise UserError(
            f"{name} holds versions of another kind ({others.pop()}), and {path} is not; give it another --name"
        )
    version = max(map(int, model["versions"]), default=0) + 1
    home = staging / (model["generate"] if is_rtx else name) / str(version)
    artefact = _write_artefact(staging, home, path, record)
    if not is_rtx:
        is_plan = path.suffix == ".plan"
        rows = min(settings.rows, record["ranges"]["batch"][2]) if is_plan else settings.rows
        _write_config(
            staging / name, version, model_config.raw(name, record["graph_path"], is_plan, rows, version)
        )
    text = _write_text_model(staging / model["generate"], version, record["prompts"], artefact, settings)
    model["versions"][str(version)] = {
        **wanted,
        **store.variant_record(store.variant_of(record)),
        "kind": kind,
        "artefact": str(path),
        "weights": record.get("weights"),
        "check": record["check"],
        "raw_model": not is_rtx,
        "plan": artefact["plan"],
        "graph": artefact["graph"],
        "kv_bytes_per_token": _cache_bytes(path, record),
        "needs": _needs(record, path.suffix == ".plan"),
        "shipped": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "files": {**artefact["files"], **repository.digests(staging, text)},
    }
    return name, version


def _write_artefact(staging: Path, home: Path, path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The plan, and the graph with the weights that it uses: what NAME_generate is told of them (artefact.json)."""
    home.mkdir(parents=True)
    is_plan = path.suffix == ".plan"
    graph = home / ("graph" if is_plan else "model.onnx")
    repack.repack(record["graph_path"], graph)
    if is_plan:
        plan = home / "model.plan"
        shutil.copyfile(path, plan)
        if store.sha256(plan) != record["sha256"]:
            raise UserError(f"{plan} does not read back as {path}; the disk is failing")
        shutil.copyfile(store.sidecar_path(path), store.sidecar_path(plan))
    return {
        "plan": str((home / "model.plan").relative_to(staging)) if is_plan else None,
        "graph": str((graph / "model.onnx").relative_to(staging)),
        "engine": asdict(opening.plan_of(record)) if is_plan else None,
        "files": repository.digests(staging, home),
    }


def _write_text_model(
    model: Path, version: int, prompts: Prompts, artefact: dict[str, Any], settings: Settings
) -> Path:
    """NAME_generate: model.py, the code that it runs, the tokenizer, and where the artefact lies; gives its folder."""
    folder = model / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    prompts.save(folder)
    shutil.copyfile(PACKAGE / IN_TRITON / "generate_model.py", folder / "model.py")
    for name in CARRIED:
        _carry(PACKAGE / name, folder / "pipeline" / name)
    store.write_json(folder / "artefact.json", artefact)
    parameters = {**asdict(settings), "provider": "auto", "threads": 0, "verify": "sha256"}
    _write_config(model, version, model_config.generate(model.name, version, parameters))
    return folder


def _carry(source: Path, target: Path) -> None:
    """Copies a module or a folder of modules."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copyfile(source, target)


def _cache_bytes(path: Path, record: dict[str, Any]) -> int:
    variant = store.variant_of(record)
    return costs.cache_bytes(
        store.read_json(store.checkpoint_folder(path) / "config.json"), variant.skip, variant.precision
    )


def _write_config(model: Path, version: int, text: str) -> None:
    """config.pbtxt serves the newest version; each version's own stays in configs/, to go back to."""
    (model / "configs").mkdir(parents=True, exist_ok=True)
    (model / "configs" / f"v{version}.pbtxt").write_text(text)
    (model / "config.pbtxt").write_text(text)


def _needs(record: dict[str, Any], is_plan: bool) -> dict[str, str]:
    """What the serving machine must have, beside Triton itself."""
    needs = {"python": "3.11 or newer in the server's image (Triton 24.11 and later)"}
    packages = ["numpy", "tokenizers", "jinja2", *(["polygraphy"] if is_plan else ["onnxruntime"])]
    for package in packages:
        needs[package] = store.version(package) or store.version(f"{package}-gpu") or "any"
    if is_plan:
        needs[record["backend"]] = f"{record['backend_version']}, exactly"
        needs["gpu"] = ", ".join(record["targets"])
    return needs


def described(manifest: dict[str, Any]) -> str:
    """What this call shipped, for a person."""
    lines = []
    for name, version in manifest["shipped"]:
        told = manifest["models"][name]["versions"][str(version)]
        size = sum(entry["bytes"] for entry in told["files"].values()) / 1e6
        lines.append(
            f"{name} and {name}_generate, version {version}: {told['kind']}, {size:.0f} MB, check {told['check']}"
        )
    return "\n".join(lines)
