"""JSON that would end Triton is refused; what it takes, passes."""

from __future__ import annotations

import json

import pytest

from pipeline.ship.triton import bodies
from pipeline.types import UserError


def infer(shape: object, data: object = (1,)) -> bytes:
    return json.dumps({"inputs": [{"name": "a", "shape": shape, "datatype": "INT64", "data": data}]}).encode()


@pytest.mark.parametrize(
    ("body", "header", "has_tensors"),
    [
        (b"{}", None, False),
        (b'{"text_input": "\\ud83d\\ude00", "shape": [4294967296, 4294967296]}', None, False),
        ('{"text_input": "\n\u00e9"}'.encode(), None, False),
        (b"[" * 100 + b"]" * 100, None, False),
        (infer([1, 3], [1, 2, 3]), None, True),
        (infer([0, 4], []), None, True),
        (infer([1, 32, 0, 4096], []), None, True),
        (b'{"inputs":[{"shape":[1,8]}]}' + b"\xff" * 64, "28", True),
        (b"\xff" * 64, "0", True),
    ],
)
def test_what_passes(body: bytes, header: str | None, has_tensors: bool) -> None:
    bodies.check(body, header, has_tensors)


@pytest.mark.parametrize(
    ("body", "header", "has_tensors", "words"),
    [
        (b"[" * 200_000, None, False, "nested too deep"),
        (b'{"a":' * 200_000, None, False, "nested too deep"),
        (b"{", None, False, "failed to parse"),
        (b"\xff", None, False, "failed to parse"),
        (b'{"a": ' + b"9" * 5000 + b"}", None, False, "failed to parse"),
        (b'{"a": 1, "a": 2}', None, False, "stands twice"),
        (infer([1 << 31, 1 << 31]), None, True, "more elements"),
        (infer([1 << 62, 0]), None, True, "more elements"),
        (infer([0, 1 << 62, 4]), None, True, "more elements"),
        (infer([1] * 100_000), None, True, "8 dimensions"),
        (infer([-1]), None, True, "whole numbers"),
        (infer([1.5]), None, True, "whole numbers"),
        (infer([True]), None, True, "whole numbers"),
        (infer(None), None, True, "whole numbers"),
        (b'{"inputs":[7]}', None, True, "whole numbers"),
        (b'{"inputs":[]}', "14", True, "should be in range"),
        (b'{"inputs":[]}', "-1", True, "should be in range"),
        (b'{"inputs":[]}', "2,13", True, "should be in range"),
        (b'{"inputs":[]}', "9" * 5000, True, "should be in range"),
    ],
)
def test_what_is_refused(body: bytes, header: str | None, has_tensors: bool, words: str) -> None:
    with pytest.raises(UserError, match=words):
        bodies.check(body, header, has_tensors)


def test_json_is_bounded_and_binary_tensors_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "LARGEST", 100)
    with pytest.raises(UserError, match="binary form"):
        bodies.check(b" " * 99 + b"{}", None, False)
    bodies.check(b"{}" + b" " * 200, "2", True)
