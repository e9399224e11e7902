from __future__ import annotations

from typing import Any

import pytest

from pipeline.evals.score.generation import TOKENS, GenerationSettings
from pipeline.types import UserError

WINDOW = 1024


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"until": ["\n"], "max_gen_toks": 8, "do_sample": False}, (8, ("\n",))),
        ({"until": "x", "max_new_tokens": 9, "temperature": 0.0}, (9, ("x",))),
        ({"max_tokens": 3, "do_sample": False, "temperature": 0.7, "top_p": 0.9, "top_k": 4}, (3, ())),
        ({"num_beams": 1, "repetition_penalty": 1.0}, (TOKENS, ())),
    ],
)
def test_greedy_settings(arguments: dict[str, Any], expected: tuple[int, tuple[str, ...]]) -> None:
    settings = GenerationSettings.of(arguments, WINDOW)
    assert (settings.max_tokens, settings.until) == expected
    assert settings.room == WINDOW - settings.max_tokens


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_gen_tok": 5}, "--gen_kwargs has no 'max_gen_tok'; did you mean max_gen_toks?"),
        ({"do_smaple": False}, "has no 'do_smaple'; did you mean do_sample?"),
        ({"num_beam": 4}, "did you mean num_beams?"),
        ({"stop": ["x"]}, "has no 'stop'; "),
        ({"num_beams": 4}, "num_beams=4 is not done here"),
        ({"repetition_penalty": 1.2}, "repetition_penalty=1.2 is not done here"),
        ({"do_sample": True}, "pass --gen_kwargs do_sample=False"),
        ({"temperature": 0.5}, "pass --gen_kwargs do_sample=False"),
        ({"max_gen_toks": 0}, "max_gen_toks 0 is not at least 1"),
        ({"max_gen_toks": -3}, "max_gen_toks -3 is not at least 1"),
        ({"max_gen_toks": "many"}, "--gen_kwargs or the task: .*many"),
        ({"until": [3]}, "until is no list of strings"),
        ({"max_gen_toks": WINDOW}, f"writes {WINDOW} tokens, and the model's window holds {WINDOW}"),
    ],
)
def test_what_is_not_done_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GenerationSettings.of(arguments, WINDOW)
