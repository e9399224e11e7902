"""Where every file lies: the top level is the data flow, calib → graphs → engines → evals. Nobody else joins paths."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.types import UserError, Variant

DEMO = "demo"
SOURCE = "source.json"
"""Written last into a model's folder: the checkpoint there is complete, and this is where it came from."""


def graphs_dir(model: str) -> Path:
    return Path("graphs") / plain_name(model)


def engines_dir(model: str, variant: str) -> Path:
    return Path("engines") / plain_name(model) / plain_name(variant)


def calib_dir(model: str) -> Path:
    return Path("calib") / plain_name(model)


def results_dir(model: str) -> Path:
    return Path("evals") / "results" / plain_name(model)


def figures_dir(model: str) -> Path:
    return Path("evals") / "figures" / plain_name(model)


def sweep_dir(recipe: str) -> Path:
    """What a sweep leaves behind: its ledger, the logs of its jobs."""
    return Path("evals") / "sweeps" / plain_name(recipe)


def graph_path(folder: Path, variant: Variant) -> Path:
    return folder / f"{variant.stem}.onnx"


def engine_path(model: str, variant: str, backend: str, targets: str, precision: str) -> Path:
    """engines/<model>/<variant>/<backend>-<targets>-<precision>.plan"""
    return engines_dir(model, variant) / f"{backend}-{targets}-{precision}.plan"


def result_path(model: str, artefact: Path, what: str) -> Path:
    """evals/results/<model>/<variant>.<precision>[-<engine>].<what>.json for what = check, bench, …"""
    stem = artefact.stem if artefact.suffix == ".onnx" else f"{artefact.parent.name}.{artefact.stem}"
    return results_dir(model) / f"{stem}.{what}.json"


def report_dir() -> Path:
    return Path("evals") / "report"


def report_inputs() -> dict[str, list[Path]]:
    """What the report reads, by kind of file."""
    patterns = {"results": "evals/results/*/*.json", "engines": "engines/*/*/*.json"}
    patterns |= {"ledgers": "evals/sweeps/*/ledger.json", "statistics": "calib/*/similarity.json"}
    return {
        what: sorted(path for path in Path().glob(p) if not path.name.endswith(".run.json"))
        for what, p in patterns.items()
    }


def requests_dir(folder: Path) -> Path:
    """Where the tokens of benchmark requests are kept, for the checkpoint in `folder`."""
    return Path("evals") / "cache" / plain_name(folder.resolve().name)


def prompts_path(digest: str) -> Path:
    """Where the prompts of a benchmark task are kept; they are the same for every model."""
    return Path("evals") / "cache" / "prompts" / f"{digest[:32]}.json.gz"


def plain_name(name: str) -> str:
    """The name, after a check that it stays inside its folder."""
    if not re.fullmatch(r"[\w.+~@=-]{1,200}", name) or name.startswith("."):
        raise UserError(f"{name!r} cannot be a file name here; use letters, digits, '.', '_' and '-'")
    return name


def healed_path(folder: Path, variant: str) -> Path:
    return folder / f"{plain_name(variant)}.safetensors"


def sidecar_path(artefact: Path) -> Path:
    return artefact.with_name(f"{artefact.stem}.json")


def model_of(artefact: Path) -> str:
    """The model that a graph or an engine belongs to, from where it lies."""
    return (
        artefact.resolve().parent.name
        if artefact.suffix == ".onnx"
        else artefact.resolve().parent.parent.name
    )
