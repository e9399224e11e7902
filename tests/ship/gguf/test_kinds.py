"""How numbers are stored."""

from __future__ import annotations

import gguf as library
import numpy as np
import pytest

from pipeline.ship.gguf import kinds
from pipeline.ship.gguf.kinds import FileKind, Kind
from pipeline.types import UserError


def test_tensors_are_converted_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(0).normal(size=(10, 64)).astype(np.float32)
    whole = {kind: b"".join(kinds.converted("x", array, kind)) for kind in kinds.TYPES.values()}
    monkeypatch.setattr(kinds, "_CHUNK", 100)
    for kind, content in whole.items():
        assert b"".join(kinds.converted("x", array, kind)) == content and len(content) == kinds.size(
            (10, 64), kind
        )


def test_names_and_numbers_of_types() -> None:
    assert (
        kinds.type_name({"general.file_type": 15}) == "q4_k_m"
        and kinds.type_name({}) is None
        and "f32" in kinds.known()
    )
    assert (
        FileKind("q4_0").of((8, 64)) == Kind.Q4_0
        and FileKind("q4_0").of((8, 64), is_output=True) == Kind.Q8_0
    )
    assert FileKind("q4_0").of((64,)) == Kind.F32 and FileKind("q4_0").of((8, 33)) == Kind.F16


def test_the_type_of_a_file_is_that_of_its_blocks() -> None:
    for rest in ("source", "f16", "q8_0"):
        how = FileKind(rest, "q4_0")
        assert (how.main, how.file_type) == ("q4_0", library.LlamaFileType.MOSTLY_Q4_0)
        assert how.of((8, 64)) == FileKind(rest).of((8, 64))
    assert FileKind("q8_0").main == "q8_0" and FileKind("f32").file_type == library.LlamaFileType.ALL_F32


def test_a_number_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="x holds nan"):
        list(kinds.converted("x", np.array([[np.nan, 1]], np.float32), Kind.F16))
