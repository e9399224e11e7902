"""What rounds where nobody says how."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.models.quantisation import blocks, rounding
from pipeline.models.quantisation.names import Quantisation
from pipeline.types import UserError


def test_to_nearest_by_default() -> None:
    how = rounding.default(Quantisation(4), Path("graphs/m/file"))
    weight = np.random.default_rng(0).normal(size=(128, 3)).astype(np.float32)
    made, wanted = how("any", weight, 4, 64), blocks.rounded(weight, 4, 64)
    assert np.array_equal(made.values, wanted.values) and np.array_equal(made.scales, wanted.scales)
    assert how.fields(Path("record.json")) == {}


def test_a_method_that_needs_text_names_the_command() -> None:
    with pytest.raises(UserError, match=r"`pipeline export m --precision int8-gptq`$"):
        rounding.default(Quantisation(8, method="gptq"), Path("graphs/m/file"))
