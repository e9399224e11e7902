"""The file."""

from __future__ import annotations

from pathlib import Path

from pipeline.models.gguf import header
from pipeline.ship.gguf import entries, output


def test_values_have_the_types_that_llama_cpp_reads(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    fields = {
        "a.b": True,
        "a.i": 3,
        "a.l": 2**40,
        "a.n": -1,
        "a.f": 0.5,
        "a.s": "x",
        "a.e": [],
        "a.w": ["y", "z"],
    }
    tensors = [entries.ones("x", 3), entries.ones("y", 40)]
    output.write(file, "llama", fields, tensors)
    there = header.read(file)
    assert {key: there.fields.get(key) for key in fields if key != "a.e"} == {
        k: v for k, v in fields.items() if v != []
    }
    assert [tensor.stored().view("f4").tolist() for tensor in there.tensors] == [[1.0] * 3, [1.0] * 40]
    output.read_back(file, tensors)
