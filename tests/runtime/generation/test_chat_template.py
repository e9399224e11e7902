"""A template renders in a sandbox; what it may say is compared with transformers in test_prompts."""

from __future__ import annotations

import re
from datetime import datetime

import pytest

from pipeline.runtime.generation.chat_template import render
from pipeline.types import UserError


def test_variables_and_time_are_there() -> None:
    assert render("{{ a }}{{ b is defined }}", {"a": 1}) == "1False"
    assert render("{{ strftime_now('%Y') }}", {}) == str(datetime.now().year)


def test_blocks_leave_no_blank_lines() -> None:
    assert (
        render("{% if true %}\n  {% for i in range(3) %}\n{{ i }}\n  {% endfor %}\n{% endif %}", {})
        == "0\n1\n2\n"
    )


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('a\nb') }}", "{% if %}", "{{ x.y.z }}", "{% break %}"]
)
def test_an_error_is_one_line(template: str) -> None:
    with pytest.raises(UserError) as caught:
        render(template, {})
    assert re.fullmatch("the model's chat template refuses these messages: .+", str(caught.value))
