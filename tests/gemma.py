"""The second real model, where its packages are installed."""

from __future__ import annotations

import pytest

from pipeline import store
from pipeline.models import demo

MODEL = demo.MODELS["gemma"]
needs_gemma = pytest.mark.skipif(
    not store.is_installed(MODEL.module), reason=f"the gemma model is not installed: {MODEL.command}"
)
