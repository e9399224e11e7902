"""Parameters of config.pbtxt."""

from __future__ import annotations

import json

import pytest

from pipeline.ship.triton.in_triton.parameters import Parameters
from pipeline.types import UserError

TEXTS = {"rows": "4", "cache_tokens": "100", "queue": "2", "provider": "cuda", "threads": "3", "verify": "no"}


def config(**texts: str) -> str:
    entries = {name: {"string_value": text} for name, text in texts.items()}
    return json.dumps({"name": "m", "parameters": entries})


def test_they_are_read_with_their_types() -> None:
    assert Parameters.of(config(**TEXTS)) == Parameters(4, 100, 2, "cuda", 3, "no")


def test_the_time_limit_has_a_default_and_is_above_nought() -> None:
    """What was shipped before has none."""
    assert Parameters.of(config(**TEXTS)).request_timeout == 300
    assert Parameters.of(config(**TEXTS, request_timeout="0.5")).request_timeout == 0.5
    for text in ("0", "-1", "nan", "inf", "soon"):
        with pytest.raises(
            UserError, match=f"request_timeout is '{text}', and not a number of seconds above"
        ):
            Parameters.of(config(**TEXTS, request_timeout=text))


@pytest.mark.parametrize("name", list(TEXTS))
def test_a_missing_one_is_named(name: str) -> None:
    with pytest.raises(UserError, match=rf"config\.pbtxt lacks the parameter '{name}'"):
        Parameters.of(config(**{key: text for key, text in TEXTS.items() if key != name}))


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(UserError, match="'many'"):
        Parameters.of(config(**{**TEXTS, "rows": "many"}))
