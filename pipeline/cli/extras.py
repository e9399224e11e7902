"""What is installed only on request: an extra's packages, and the line that installs them."""

from __future__ import annotations

from pipeline import store
from pipeline.types import UserError

EXTRAS: dict[str, tuple[tuple[str, ...], ...]] = {
    "score": (("lm_eval",), ("datasets",), ("pandas",), ("pyarrow",), ("cachetools",)),
    "heal": (("peft",), ("accelerate",)),
    "report": (("plotly",), ("matplotlib",)),
    "serve": (("tritonclient",), ("fastapi",), ("uvicorn",), ("httpx",)),
    "ray": (("ray",),),
    "rtx": (("tensorrt_rtx", "tensorrt_rtx_bindings"),),
    "tensorrt": (("tensorrt", "tensorrt_bindings"),),
    "optimum": (("optimum.exporters.onnx",),),
    "qlora": (("bitsandbytes",),),
    "mlflow": (("mlflow",),),
    "sentencepiece": (("sentencepiece",), ("google.protobuf",)),
}
"""Extra → the modules that it brings; of several names in a row one is enough. As pyproject.toml has them."""


OF_ITS_OWN = {"optimum": "optimum-onnx holds transformers below 4.58"}
"""Extras that change what else is installed, and what they change."""


def install_command(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'skip-pipeline[{extra}]'"


def missing(extra: str) -> list[str]:
    """The modules of an extra that are not installed."""
    return [names[0] for names in EXTRAS[extra] if not any(map(store.is_installed, names))]


def needs(extra: str, command: str) -> None:
    """Refuses to go on where an extra is not installed.

    Args:
        extra: its name.
        command: that needs it, as it is typed.

    Raises:
        UserError: a module of the extra is missing.
    """
    if names := missing(extra):
        where = f", in an environment of its own: {OF_ITS_OWN[extra]}" if extra in OF_ITS_OWN else ""
        raise UserError(f"`{command}` needs {', '.join(names)}; run `{install_command(extra)}`{where}")
