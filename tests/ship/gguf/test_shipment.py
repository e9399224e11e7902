"""What is said of a file."""

from __future__ import annotations

from dataclasses import replace

from pipeline.ship.gguf.shipment import GgufShipment


def test_a_person_is_told_what_it_is_and_how_to_run_it() -> None:
    one = GgufShipment(
        "a b.gguf", "attn1", "deci", "f16", 2_000_000, 4, (0, 1, 2, 3), 0, 30, 2, True, True, ("x",)
    )
    lines = one.described().splitlines()
    assert lines[0] == "a b.gguf: attn1, architecture deci, type f16, 2.0 MB"
    assert lines[1] == "4 layers, of layers 0-3 of 4; tensors: 30 converted, 2 added"
    quantised = replace(one, type="q4_0", rest="f16", kept=29, converted=10, new=0)
    lines_too = quantised.described().splitlines()
    assert lines_too[0].endswith("architecture deci, type q4_0 (what is in no blocks: f16), 2.0 MB")
    assert lines_too[1].endswith("tensors: 29 in the graph's own blocks, 10 converted")
    assert lines[-2:] == ["note: x", "run it: llama-cli -m 'a b.gguf'"] and one.plain()["layers"] == [
        0,
        1,
        2,
        3,
    ]
