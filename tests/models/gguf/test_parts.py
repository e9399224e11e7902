"""Files that are not parts of one model are refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.models.gguf import parts
from pipeline.types import UserError
from tests import tiny_gguf
from tests.tiny_gguf import Tiny


def test_parts_of_two_models_and_parts_in_disorder_are_refused(tmp_path: Path) -> None:
    tiny_gguf.write(tiny_gguf.source(tmp_path / "s"), tmp_path / "m.gguf", Tiny(parts=8))
    files = sorted(tmp_path.glob("m-*.gguf"))
    whole = parts.read(files[1])
    assert whole.file == files[0] and len(whole.tensors) == whole.fields["split.tensors.count"]
    shutil.copy(files[1], files[2])
    with pytest.raises(UserError, match=r"split\.no is 1, not 2"):
        parts.read(files[0])
