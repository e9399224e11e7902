from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.models import json_lines
from pipeline.types import UserError


def test_lines_keep_their_numbers(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"a": "\\u00e9\\ud83d\\ude00"}\r\n\r\n{"a": [1, 2.5, null]}')
    assert json_lines.read(file) == [(1, {"a": "é😀"}), (3, {"a": [1, 2.5, None]})]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{bad", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"a": 1, "a": 2}', "the key 'a' stands there twice"),
        ('{"a": {"b": 1, "b": 1}}', "the key 'b' stands there twice"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": -Infinity}', "-Infinity is no number"),
        ('{"a": 1e999}', "beyond the largest number"),
        ('{"a": "\\ud800"}', "half a surrogate pair"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('{"a": ' + "1" * 5000 + "}", "not JSON"),
        ('{"a": "x\0y"}', "NUL"),
    ],
)
def test_what_other_readers_pass_over_is_refused(line: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 0}\n' + line + "\n")
    with pytest.raises(UserError, match=f"line 2: .*{message}"):
        json_lines.read(file)


def test_a_file_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    with pytest.raises(UserError, match="does not exist"):
        json_lines.read_text(file)
    file.write_bytes(b"a\xff")
    with pytest.raises(UserError, match=r"no UTF-8 text .* at byte 1"):
        json_lines.read_text(file)
    file.write_bytes("one\ntwo".encode("utf-16-le"))
    with pytest.raises(UserError, match="holds a NUL"):
        json_lines.read_text(file)


def test_no_pipe_is_waited_for_and_no_gigabytes_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(UserError, match="not a regular file"):
        json_lines.read_text(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_bytes(bytes(101))
    monkeypatch.setattr(json_lines, "MAX_BYTES", 100)
    with pytest.raises(UserError, match="has 101 bytes; a file of its kind has 100 at most"):
        json_lines.read_text(tmp_path / "b.txt")
