"""Which tensors a file has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.ship import pruned
from pipeline.ship.gguf.kinds import FileKind
from pipeline.ship.gguf.tensors import VariantTensors
from pipeline.types import UserError
from tests.ship.gguf import projects


@pytest.fixture
def base(workdir: Path) -> Path:
    return projects.base(workdir)


def test_a_tensor_without_a_place_is_refused(base: Path) -> None:
    model = pruned.read(base, unchecked=True)
    more = {**model.everything, "model.layers.0.self_attn.sinks": model.everything["model.norm.weight"]}
    entries = VariantTensors(replace(model, everything=more), FileKind("f16"), None, None, {}).entries
    with pytest.raises(UserError, match=r"the tensor model.layers.0.self_attn.sinks, which has no place"):
        entries()
