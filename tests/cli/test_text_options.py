"""On what text a method measures, by options; the commands' own tests are in test_quantised.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.calib.gptq_rounding import GptqRounding
from pipeline.cli.text_options import MeasuredOn
from pipeline.models import checkpoint
from pipeline.models.quantisation.names import Quantisation
from pipeline.models.texts import OWN
from pipeline.types import UserError
from tests import tiny

NEAREST, GPTQ = Quantisation(4), Quantisation(4, method="gptq")
NOTHING = MeasuredOn(None, None, None, None)


@pytest.mark.parametrize(
    ("typed", "option"),
    [
        (MeasuredOn([Path("a.txt")], None, None, None), "--texts"),
        (MeasuredOn(None, "some/set", None, None), "--dataset"),
        (MeasuredOn([], None, 3, None), "--samples"),
        (MeasuredOn([], None, None, 0), "--length"),
    ],
)
def test_a_text_where_nothing_is_measured(typed: MeasuredOn, option: str) -> None:
    for weights in (None, NEAREST):
        with pytest.raises(UserError, match=f"^{option} is of --method gptq"):
            typed.belong_to(weights)
    typed.belong_to(GPTQ)
    NOTHING.belong_to(None)


def test_what_rounds(tmp_path: Path) -> None:
    source = checkpoint.open_checkpoint(tiny.checkpoint(tmp_path / "m"))
    assert NOTHING.rounding(source, None) is None and NOTHING.rounding(source, NEAREST) is None
    how = NOTHING.rounding(source, GPTQ)
    assert isinstance(how, GptqRounding)
    assert (how.text_input, how.samples, how.length) == (OWN, 64, 256)
    other = MeasuredOn([], None, 3, 8).rounding(source, GPTQ)
    assert isinstance(other, GptqRounding) and (other.samples, other.length) == (3, 8)
