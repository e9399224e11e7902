"""The parts of a split model are found by the name of any."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.models.gguf import names
from pipeline.types import UserError


def test_a_split_model_is_named_without_its_part(tmp_path: Path) -> None:
    assert names.model_name(Path("a/big-00002-of-00003.gguf")) == "big"
    assert names.model_name(Path("a/small.Q4.gguf")) == "small.Q4"
    parts = [tmp_path / f"big-{i:05}-of-00003.gguf" for i in (1, 2, 3)]
    for part in parts:
        part.touch()
    assert all(names.files(part) == parts for part in parts)
    assert names.files(tmp_path / "x.gguf") == [tmp_path / "x.gguf"]
    parts[1].unlink()
    with pytest.raises(UserError, match=r"big-00002-of-00003\.gguf is missing"):
        names.files(parts[0])


@pytest.mark.parametrize("part", ["m-00000-of-00003", "m-00004-of-00003", "m-00001-of-99999"])
def test_numbers_that_cannot_be_are_refused(part: str) -> None:
    with pytest.raises(UserError, match="is no part of a split model"):
        names.files(Path(f"{part}.gguf"))
