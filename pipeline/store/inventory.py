"""What a project holds: its models, their graphs and engines."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.store.paths import DEMO, SOURCE, Project, plain_name, sidecar_path
from pipeline.types import PRECISIONS, UserError


def models(project: Project | None = None) -> list[str]:
    """Names of the models under graphs/, those with a complete checkpoint."""
    project = project or Project()
    return sorted(path.parent.name for path in (project.root / "graphs").glob(f"*/{SOURCE}"))


def default_model() -> str:
    """PIPELINE_MODEL, else the only model under graphs/, else 'demo'.

    Raises:
        UserError: several models are there and none is named.
    """
    if name := os.environ.get("PIPELINE_MODEL"):
        return name
    names = models()
    if len(names) > 1:
        raise UserError(f"several models under graphs/: {', '.join(names)}; name one, or set PIPELINE_MODEL")
    return names[0] if names else DEMO


def graphs_of(model: str, project: Project | None = None, twins: bool = False) -> list[Path]:
    """The graphs that stages work on, base first, then by name; no merged graphs.

    Args:
        model: its name.
        project: by default that in the current directory.
        twins: those of another form, too: `--head all`, a static cache.
    """
    graphs = [
        path
        for path in (project or Project()).graphs(model).glob("*.onnx")
        if any(map(_is_precision, path.stem.split(".")[1 if twins else -1 :]))
        and not path.name.startswith("merged-")
        and sidecar_path(path).exists()
    ]
    return sorted(graphs, key=lambda path: (not path.name.startswith("base."), path.name))


def _is_precision(part: str) -> bool:
    """Whether a part of a file's name is that of a precision: 'fp16', 'int4-fp32'."""
    return part.rpartition("-")[2] in PRECISIONS


def engines_of(model: str, project: Project | None = None, twins: bool = False) -> list[Path]:
    """The model's engines that stages work on; none of merged graphs. Arguments as `graphs_of`."""
    plans = ((project or Project()).root / "engines" / plain_name(model)).glob("*/*.plan")
    return sorted(
        path
        for path in plans
        if not path.parent.name.startswith("merged-") and (twins or "." not in path.stem)
    )
