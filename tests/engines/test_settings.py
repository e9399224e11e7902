from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.engines.builder import Builder
from pipeline.engines.settings import choose_targets
from pipeline.runtime import tensorrt_library
from pipeline.types import UserError
from tests import needs


@needs.rtx
def test_targets_by_default(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_library, "gpu_target", lambda: "sm89")
    assert choose_targets(Builder("tensorrt-rtx"), ()) == ["sm89"]
    proper: Any = SimpleNamespace(backend="tensorrt")
    assert choose_targets(proper, ()) == choose_targets(proper, ("sm89",)) == ["sm89"]
    with pytest.raises(UserError, match=r"builds for the GPU it runs on \(sm89\)"):
        choose_targets(proper, ("sm80",))
    monkeypatch.setattr(tensorrt_library, "gpu_target", lambda: None)
    with pytest.raises(UserError, match="none is seen here; use --backend tensorrt-rtx"):
        choose_targets(proper, ())
