"""The bytes of one tensor."""

from __future__ import annotations

import numpy as np

from pipeline.ship.gguf import entries
from pipeline.ship.gguf.kinds import FileKind, Kind


def test_zeros_have_the_size_that_they_say() -> None:
    for name in ("f32", "f16", "q8_0", "q4_1", "source"):
        entry = entries.zeros("x", (32, 64), FileKind(name))
        content = b"".join(entry.chunks())
        assert len(content) == entry.size and not any(content)


def test_new_numbers_are_kept_whole() -> None:
    array = np.arange(6, dtype=np.float32)
    assert b"".join(entries.new("x", array, Kind.F32).chunks()) == array.tobytes()
    assert b"".join(entries.ones("x", 3).chunks()) == np.ones(3, np.float32).tobytes()
