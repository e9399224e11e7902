"""TOML and YAML that users write: what their libraries let through is refused in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.store import markup
from pipeline.types import UserError

LAUGHS = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


def test_plain_documents_are_read(tmp_path: Path) -> None:
    toml, yaml = tmp_path / "a.toml", tmp_path / "a.yaml"
    toml.write_text('a = [1, 0.5, "é"]\n[b]\nc = true\n', encoding="utf-8")
    yaml.write_text("a: [1, 0.5, é]\nb:\n  c: true\n  d: null\n", encoding="utf-8")
    assert markup.read_toml(toml) == {"a": [1, 0.5, "é"], "b": {"c": True}}
    assert markup.read_yaml(yaml) == {"a": [1, 0.5, "é"], "b": {"c": True, "d": None}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = ", "cannot be read as TOML: Invalid value"),
        (f"a = 0x{'f' * 5000}", "an integer is beyond 64 bits"),
        ("a = 9223372036854775808", "an integer is beyond 64 bits"),
        (f"a = {'9' * 5000}", "cannot be read as TOML: Exceeds the limit"),
        (f"a = {'[' * 100_000}", "nested too deep"),
        (f"{'a.' * 500}b = 1", "nested too deep"),
        (f"{'a.' * 200_000}b = 1", "nested too deep"),
        ("[" + "'é' . " * 20_000 + "b]", "nested too deep"),
        ("a = 1\na = 2", "cannot be read as TOML: Cannot overwrite"),
        ("a = '\udc80'", "cannot be read as TOML: 'utf-8' codec"),
        ("# " + "x" * 2**20, "a file of its kind has 1,048,576 at most"),
    ],
)
def test_toml_that_no_recipe_has_is_refused(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError) as error:
        markup.read_toml(file)
    assert (
        words in str(error.value) and str(error.value).startswith(str(file)) and len(str(error.value)) < 600
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "line 1 has an anchor or an alias; write the value out"),
        ("a: &a [*a]", "has an anchor or an alias"),
        ("a: *b", "line 1 has an anchor or an alias"),
        ("a: 1\nb: 2\na: 3", "line 1: a key stands there twice"),
        ("a: [", "cannot be read as YAML: while parsing"),
        ("[" * 20_000, "nested too deep"),
        ("a:\n" + "".join(f"{' ' * i}- \n" for i in range(1, 60)), "nested too deep"),
        (f"a: {'9' * 5000}", "cannot be read as YAML: Exceeds the limit"),
        (f"a: 0x{'f' * 5000}", "an integer is beyond 64 bits"),
        ("a: 2001-99-99", "cannot be read as YAML: month must be in 1..12"),
        ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        ('a: "\\ud800"', "half a surrogate pair"),
        ("? [a]\n: b", "cannot be read as YAML"),
        ("a: 1\n---\nb: 2", "expected a single document"),
    ],
)
def test_yaml_that_no_benchmark_has_is_refused(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        markup.read_yaml(file)
    assert words in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 600


def test_no_pipe_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.yaml")
    with pytest.raises(UserError, match="not a regular file"):
        markup.read_yaml(tmp_path / "a.yaml")
