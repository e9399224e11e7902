"""Which type a file has."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.ship import pruned
from pipeline.ship.gguf.choice import chosen
from pipeline.types import UserError
from tests.ship.gguf import projects


def test_a_file_that_is_gone_is_a_reason_and_other_types_the_way_out(workdir: Path) -> None:
    model = pruned.read(projects.base(workdir), unchecked=True)
    assert chosen("q8_0", model, "x.gguf is gone").name == "q8_0" and chosen(None, model, None).name == "f16"
    for name in (None, "source"):
        with pytest.raises(UserError, match=r"x.gguf is gone; choose another --type: f32, f16"):
            chosen(name, model, "x.gguf is gone")
