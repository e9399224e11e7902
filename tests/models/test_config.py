"""config.json, read in one place."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.models.config import read_config
from pipeline.types import UserError


@pytest.mark.parametrize("text", ["[1]", "null", '"x"', "{", "\xff"])
def test_a_config_that_is_no_object_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json") as caught:
        read_config(tmp_path)
    assert "\n" not in str(caught.value)
