"""A model that came from a GGUF keeps the GGUF's own bytes, while that is still the file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.graphs import export
from pipeline.models import checkpoint, drop_lists
from pipeline.models.gguf import stored
from pipeline.ship.gguf import ship
from pipeline.types import UserError
from tests import tiny
from tests.ship.gguf import projects
from tests.tiny_gguf import Kind, Tiny

QUANTISED = {"norm": Kind.F32, "attn_q": Kind.Q8_0, "attn_k": Kind.Q4_0, "ffn_": Kind.Q8_0}
KEYS = {
    "general.name": "A name",
    "general.license": "mit",
    "general.file_type": 7,
    "tokenizer.chat_template": "{{ x }}",
}


def test_tensors_and_tokenizer_are_the_files_own(workdir: Path) -> None:
    base, file = projects.from_gguf(workdir, how=Tiny(kinds=QUANTISED, keys=KEYS))
    shipment = ship.ship(projects.cut(base, "attn1+mlp2"), workdir / "m.gguf", unchecked=True)
    assert (shipment.type, shipment.converted, shipment.new) == ("source", 0, 4)
    own, there = projects.tensors(file), projects.tensors(workdir / "m.gguf")
    for name, tensor in there.items():
        if not name.startswith("blk.2.ffn_"):
            assert (
                tensor.kind == own[name].kind and tensor.stored().tobytes() == own[name].stored().tobytes()
            ), name
    given, fields = projects.read(file).fields, projects.read(workdir / "m.gguf").fields
    kept = {key: value for key, value in given.items() if key.startswith(("tokenizer.", "general."))}
    kept["general.architecture"] = "deci"
    assert {key: fields.get(key) for key in kept} == kept


def test_layers_are_renumbered_and_split_files_read_whole(workdir: Path) -> None:
    base, file = projects.from_gguf(workdir, how=Tiny(parts=9), rope_scaling=tiny.LLAMA3)
    shipment = ship.ship(projects.cut(base, "block1"), workdir / "m.gguf", unchecked=True)
    own, there = projects.tensors(file), projects.tensors(workdir / "m.gguf")
    assert shipment.copied == len(there) == len(own) - 9
    assert there["blk.1.ffn_up.weight"].stored().tobytes() == own["blk.2.ffn_up.weight"].stored().tobytes()
    assert not any(key.startswith("split.") for key in projects.read(workdir / "m.gguf").fields)


def test_what_a_compensation_changed_is_float16_and_said(workdir: Path) -> None:
    base, _ = projects.from_gguf(workdir, how=Tiny(kinds=QUANTISED))
    graph = projects.cut(base, "attn1+mlp2", "fold")
    shipment = ship.ship(graph, workdir / "m.gguf", unchecked=True)
    assert "6 tensors were changed by a compensation or an adapter: they are f16" in shipment.described()
    there = projects.tensors(workdir / "m.gguf")
    assert there["blk.0.ffn_down.weight"].kind == Kind.F16 and there["blk.0.ffn_up.weight"].kind == Kind.Q8_0


def test_other_types_are_made_of_the_graphs_weights(workdir: Path) -> None:
    base, file = projects.from_gguf(workdir, how=Tiny(kinds=QUANTISED, keys=KEYS))
    shipment = ship.ship(base, workdir / "m.gguf", "f16", unchecked=True)
    own, there = projects.tensors(file), projects.tensors(workdir / "m.gguf")
    for name in ("blk.0.attn_q.weight", "blk.3.ffn_down.weight"):
        assert there[name].kind == Kind.F16
        assert np.array_equal(stored.values(there[name]), stored.values(own[name]))
    assert shipment.copied == 0 and projects.read(workdir / "m.gguf").fields["general.file_type"] == 1
    assert (
        ship.ship(base, workdir / "n.gguf", "q8_0", unchecked=True).type == "source"
    )  # it is the file's own
    (note,) = ship.ship(base, workdir / "o.gguf", "q4_0", unchecked=True).notes
    assert note == "the weights were q8_0 before, and are rounded once more"


def test_a_type_that_the_file_has_not_is_refused(workdir: Path) -> None:
    base, file = projects.from_gguf(workdir, how=Tiny(keys=KEYS))
    with pytest.raises(
        UserError, match=rf"--type q4_k_m is not made here, and .*{file.name} has q8_0: ship with"
    ):
        ship.ship(base, workdir / "m.gguf", "q4_k_m", unchecked=True)


def test_a_file_that_is_gone_or_another_is_refused(workdir: Path) -> None:
    base, file = projects.from_gguf(workdir)
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(
        UserError, match=r"is not the file that this model came from any more; choose another --type: f32"
    ):
        ship.ship(base, workdir / "m.gguf", unchecked=True)
    file.unlink()
    with pytest.raises(
        UserError, match=r"tiny.gguf, which this model came from, is gone; choose another --type"
    ):
        ship.ship(base, workdir / "m.gguf", "source", unchecked=True)
    assert ship.ship(
        base, workdir / "m.gguf", "f16", unchecked=True
    ).written  # the tokenizer is in the folder


def test_the_output_is_never_the_source(workdir: Path) -> None:
    base, file = projects.from_gguf(workdir)
    before = file.read_bytes()
    with pytest.raises(UserError, match="exists and is"):
        ship.ship(base, file, unchecked=True)
    assert file.read_bytes() == before


@pytest.mark.parametrize("name", ["block1", "attn1+mlp0-1"])
def test_a_file_that_was_shipped_is_read_and_shipped_again(name: str, workdir: Path) -> None:
    """Its layers are counted without gaps, and the checkpoint's have the numbers of the whole model."""
    base, _ = projects.from_gguf(workdir, how=Tiny(kinds=QUANTISED))
    ship.ship(projects.cut(base, name), workdir / "first.gguf", unchecked=True)
    source = checkpoint.resolve(str(workdir / "first.gguf"))
    again = export.export(source, "fp32", drop_lists.of(source))
    shipment = ship.ship(again, workdir / "second.gguf", unchecked=True)
    assert (shipment.type, shipment.converted) == ("source", 0)
    first, second = (projects.tensors(workdir / f"{one}.gguf") for one in ("first", "second"))
    assert {n: t.stored().tobytes() for n, t in first.items()} == {
        n: t.stored().tobytes() for n, t in second.items()
    }


def test_a_pipe_in_the_place_of_the_output_is_not_waited_for(workdir: Path) -> None:
    base, _ = projects.from_gguf(workdir)
    os.mkfifo(workdir / "m.gguf")
    with pytest.raises(UserError, match="exists and is something else"):
        ship.ship(base, workdir / "m.gguf", unchecked=True)
