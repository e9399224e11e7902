"""The GGUF that a checkpoint came from."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.models import checkpoint
from pipeline.models.gguf import originals, origins
from pipeline.models.gguf.origins import Origin
from pipeline.ship.gguf import kinds
from tests.ship.gguf import projects


def test_a_checkpoint_of_safetensors_came_from_none(workdir: Path) -> None:
    assert origins.of_checkpoint(checkpoint.open_checkpoint(projects.base(workdir).parent)) is None
    base, file = projects.from_gguf(workdir)
    origin = origins.of_checkpoint(checkpoint.open_checkpoint(base.parent))
    assert (
        isinstance(origin, Origin) and origin.file.samefile(file) and kinds.type_name(origin.fields) is None
    )


@pytest.mark.parametrize(("layers", "expected"), [(4, "blk.3.attn_q.weight"), (3, "blk.2.attn_q.weight")])
def test_tensors_are_found_by_the_checkpoints_numbers(layers: int, expected: str) -> None:
    """A reader may count the layers of a shipped file, or those of the whole model."""
    numbers = origins._numbers({originals.LAYERS: [0, 2, 3], originals.TOTAL: 4}, layers)
    assert origins._renumbered("blk.2.attn_q.weight", numbers) == expected
    assert origins._renumbered("output_norm.weight", numbers) == "output_norm.weight"
