"""What a project holds: its models, their graphs and engines."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.store.paths import DEMO, SOURCE, graphs_dir, plain_name, sidecar_path
from pipeline.types import PRECISIONS, UserError


def models() -> list[str]:
    """Names of the models under graphs/, those with a complete checkpoint."""
    return sorted(path.parent.name for path in Path("graphs").glob(f"*/{SOURCE}"))


def default_model() -> str:
    """PIPELINE_MODEL, else the only model under graphs/, else 'demo'.

    Raises:
        UserError: several models are there and none is named.
    """
    if name := os.environ.get("PIPELINE_MODEL"):
        return name
    found = models()
    if len(found) > 1:
        raise UserError(f"several models under graphs/: {', '.join(found)}; name one, or set PIPELINE_MODEL")
    return found[0] if found else DEMO


def graphs_of(model: str) -> list[Path]:
    """The model's graphs that stages work on: base first, then by name; no `--head all` twins, no merged graphs."""
    found = [
        path
        for path in graphs_dir(model).glob("*.onnx")
        if path.stem.split(".")[-1] in PRECISIONS
        and not path.name.startswith("merged-")
        and sidecar_path(path).exists()
    ]
    return sorted(found, key=lambda p: (not p.name.startswith("base."), p.name))


def engines_of(model: str) -> list[Path]:
    """The model's engines that stages work on; none of merged graphs."""
    found = (Path("engines") / plain_name(model)).glob("*/*.plan")
    return sorted(path for path in found if not path.parent.name.startswith("merged-"))
