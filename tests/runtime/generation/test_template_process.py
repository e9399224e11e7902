"""The answers of the process that renders templates; its bounds are tested in test_chat_template."""

from __future__ import annotations

import json

import pytest

from pipeline.runtime.generation import template_process


def answer(template: str, **variables: object) -> dict[str, str]:
    return template_process._answer(json.dumps({"template": template, "variables": variables}).encode())


def test_a_line_is_answered_by_a_text_or_by_a_reason() -> None:
    assert answer("{{ a }}", a=1) == {"text": "1"}
    assert answer("{{ raise_exception('no\nway') }}") == {"error": "no"}
    assert "error" in template_process._answer(b"no JSON")


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ {'b': 'é<', 'a': 1} | tojson }}", '{"b": "é<", "a": 1}'),
        ("{% for i in range(5) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("a{% generation %}b{% endgeneration %}", "ab"),
    ],
)
def test_templates_have_what_transformers_gives_them(template: str, text: str) -> None:
    assert answer(template) == {"text": text}


def test_it_stops_at_its_output() -> None:
    assert "1,000,000 characters" in answer("{% for i in range(9999) %}{{ 'a' * 999 }}{% endfor %}")["error"]
