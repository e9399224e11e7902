"""What a shipped file holds and says, and how bad input ends: in one line, with nothing left."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf as library
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from pipeline.models.gguf import stored
from pipeline.ship.gguf import output, ship
from pipeline.types import UserError
from tests import tiny, tiny_gguf
from tests.ship.gguf import projects
from tests.tiny_gguf import Kind

WRITTEN = {
    "f32": Kind.F32, "f16": Kind.F16, "bf16": Kind.BF16, "q8_0": Kind.Q8_0, "q5_1": Kind.Q5_1,
    "q5_0": Kind.Q5_0, "q4_1": Kind.Q4_1, "q4_0": Kind.Q4_0,
}  # fmt: skip


@pytest.fixture
def base(workdir: Path) -> Path:
    return projects.base(workdir)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name != "graphs"}


def test_whole_blocks_are_a_model_of_the_same_architecture(base: Path, workdir: Path) -> None:
    shipment = ship.ship(projects.cut(base, "block1"), workdir / "m.gguf", "f32", unchecked=True)
    header = projects.read(workdir / "m.gguf")
    assert header.fields["general.architecture"] == shipment.architecture == "llama"
    assert header.fields["llama.block_count"] == 3 and shipment.layers == (0, 2, 3)
    expected = tiny_gguf.tensors(base.parent)  # as llama.cpp's converter has them
    there = projects.tensors(workdir / "m.gguf")
    for name, tensor in there.items():
        blk, number, *rest = name.split(".")
        whole = ".".join([blk, str(shipment.layers[int(number)]), *rest]) if blk == "blk" else name
        assert np.array_equal(stored.values(tensor).astype(np.float32), expected[whole]), name
    assert len(there) == len(expected) - 9


def test_sublayers_are_deci_with_counts_a_layer(base: Path, workdir: Path) -> None:
    ship.ship(projects.cut(base, "attn1_3+mlp2-3"), workdir / "m.gguf", "f32", unchecked=True)
    fields, names = projects.read(workdir / "m.gguf").fields, set(projects.tensors(workdir / "m.gguf"))
    assert fields["deci.attention.head_count"] == [4, 0, 4]
    assert fields["deci.attention.head_count_kv"] == [2, 0, 2]
    assert fields["deci.feed_forward_length"] == [
        96,
        96,
        32,
    ]  # never 0: llama.cpp would skip the attention too
    assert not any(name.startswith("blk.1.attn") for name in names)
    assert fields["deci.block_count"] == 3 and fields["deci.attention.key_length"] == 32


@pytest.mark.parametrize(
    ("name", "form", "layers"),
    [
        ("attn1+mlp2", None, [0, 1, 2, 3]),
        ("block0_2", None, [1, 3]),
        ("block2", "linear", [0, 1, 2, 2, 3]),
    ],
)
def test_a_file_says_where_its_layers_come_from(
    name: str, form: str | None, layers: list[int], base: Path, workdir: Path
) -> None:
    graph = projects.cut(base, name, form)
    shipment = ship.ship(graph, workdir / "m.gguf", unchecked=True)
    fields = projects.read(workdir / "m.gguf").fields
    own = {key.removeprefix("skip_pipeline."): value for key, value in fields.items() if "pipeline" in key}
    assert own["variant"] == (f"{name}~{form}" if form else name) and own["num_layers"] == 4
    assert own["layers"] == layers == shipment.plain()["layers"] and len(own["digest"]) == 64


def test_the_same_again_is_nothing_to_do_and_anything_else_refused(base: Path, workdir: Path) -> None:
    graph, file = projects.cut(base, "attn1"), workdir / "new" / "folder" / "m.gguf"
    first = ship.ship(graph, file, "f16", unchecked=True)
    stamp = file.stat().st_mtime_ns
    again = ship.ship(graph, file, "f16", unchecked=True)
    assert first.written and not again.written and file.stat().st_mtime_ns == stamp
    assert "nothing to do" in again.described() and "llama-cli -m" in again.described()
    for other, kind in ((graph, "f32"), (projects.cut(base, "attn2"), "f16")):
        with pytest.raises(
            UserError, match="exists and is another file, of 'attn1'; remove it or choose another name"
        ):
            ship.ship(other, file, kind, unchecked=True)
    file.write_text("no model")
    with pytest.raises(UserError, match="exists and is something else"):
        ship.ship(graph, file, "f16", unchecked=True)
    assert file.read_text() == "no model" and files(file.parent) == {"m.gguf"}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("m.bin", "does not end in .gguf"),
        ("", "is a folder"),
        ("m-00001-of-00002.gguf", "one of several files"),
        ("graphs/x.gguf/m.gguf", "cannot write"),
    ],
)
def test_odd_names_are_refused(name: str, reason: str, base: Path, workdir: Path) -> None:
    (workdir / "graphs" / "x.gguf").write_text("a file")
    with pytest.raises(UserError, match=reason):
        ship.ship(base, workdir / name, unchecked=True)
    assert files(workdir) == set()


def test_a_graph_without_a_check_is_refused(base: Path, workdir: Path) -> None:
    with pytest.raises(UserError, match="has passed no check"):
        ship.ship(base, workdir / "m.gguf")
    tiny.passed(base)
    assert ship.ship(base, workdir / "m.gguf").checked
    assert "has passed its check" in ship.ship(base, workdir / "m.gguf").described()


def test_a_full_disk_leaves_nothing(base: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(output, "write", full)
    with pytest.raises(UserError, match=r"cannot write .*: No space left on device"):
        ship.ship(base, workdir / "new" / "m.gguf", unchecked=True)
    assert files(workdir) == set()
    usage = shutil.disk_usage(workdir)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="needs 1 MB, and 0 are free there"):
        ship.ship(base, workdir / "new" / "m.gguf", "f32", unchecked=True)
    assert files(workdir) == set()


@pytest.mark.parametrize("name", WRITTEN)
def test_every_type_is_what_it_says(name: str, base: Path, workdir: Path) -> None:
    graph = projects.cut(base, "attn1+mlp2", "linear")
    ship.ship(graph, workdir / "m.gguf", name, unchecked=True)
    there, fields = projects.tensors(workdir / "m.gguf"), projects.read(workdir / "m.gguf").fields
    kinds = {
        tensor.kind for name, tensor in there.items() if len(tensor.shape) == 2 and name != "output.weight"
    }
    assert kinds == {WRITTEN[name]}
    assert all(tensor.kind == Kind.F32 for tensor in there.values() if len(tensor.shape) == 1)
    expected = "ALL_F32" if name == "f32" else f"MOSTLY_{name.upper()}"
    assert fields["general.file_type"] == library.LlamaFileType[expected]
    is_quantised = name.startswith("q")
    assert there["output.weight"].kind == (Kind.Q8_0 if is_quantised else WRITTEN[name])
    assert ("general.quantization_version" in fields) == is_quantised
    values = stored.values(there["blk.0.ffn_up.weight"]).astype(np.float32)
    own = tiny_gguf.tensors(base.parent)["blk.0.ffn_up.weight"]
    assert np.abs(values - own).max() < {"f32": 1e-9}.get(name, 0.2 * np.abs(own).max())


def test_an_embedding_that_is_the_head_too_has_8_bits(workdir: Path) -> None:
    ship.ship(projects.base(workdir, tie_word_embeddings=True), workdir / "m.gguf", "q4_0", unchecked=True)
    there = projects.tensors(workdir / "m.gguf")
    assert "output.weight" not in there and there["token_embd.weight"].kind == Kind.Q8_0
    assert there["blk.0.ffn_up.weight"].kind == Kind.Q4_0


def test_rows_that_are_no_whole_blocks_are_float16(workdir: Path) -> None:
    base = projects.base(workdir, intermediate_size=80)
    ship.ship(base, workdir / "m.gguf", "q8_0", unchecked=True)
    there = projects.tensors(workdir / "m.gguf")
    assert there["blk.0.ffn_down.weight"].kind == Kind.F16 and there["blk.0.ffn_up.weight"].kind == Kind.Q8_0


@pytest.mark.parametrize(("dtype", "kind"), [("fp32", "f16"), ("fp16", "f16"), ("bf16", "bf16")])
def test_by_default_nothing_of_16_bits_is_lost(dtype: str, kind: str, workdir: Path) -> None:
    base = projects.base(workdir, dtype=dtype)
    assert ship.ship(base, workdir / "m.gguf", unchecked=True).type == kind


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("q4_k_m", r"is not made here: ship with --type f16 .* `llama-quantize OUT.f16.gguf OUT.gguf Q4_K_M`"),
     ("float", "'float' is no type of llama.cpp's; choose source, f32, f16"),
     ("source", "came from no GGUF .*; choose another --type: f32")],
)  # fmt: skip
def test_other_types_are_refused(kind: str, reason: str, base: Path, workdir: Path) -> None:
    with pytest.raises(UserError, match=reason):
        ship.ship(base, workdir / "m.gguf", kind, unchecked=True)
    assert files(workdir) == set()


def test_a_number_beyond_float16_is_refused_by_name(workdir: Path) -> None:
    folder = tiny_gguf.source(workdir / "graphs" / "big")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = 70000
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    base = projects.export.export_base(projects.checkpoint.open_checkpoint(folder))
    for kind in ("f16", "q8_0"):
        with pytest.raises(UserError, match=r"blk.1.ffn_up.weight holds 70000, .*; ship with --type bf16"):
            ship.ship(base, workdir / "m.gguf", kind, unchecked=True)
    assert files(workdir) == set()
    ship.ship(base, workdir / "m.gguf", "bf16", unchecked=True)


def test_the_rope_of_llama_3_is_the_tensor_of_the_converter(workdir: Path) -> None:
    base = projects.base(workdir, rope_scaling=tiny.LLAMA3)
    ship.ship(projects.cut(base, "attn1"), workdir / "m.gguf", unchecked=True)
    factors = stored.values(projects.tensors(workdir / "m.gguf")["rope_freqs.weight"])
    config: dict[str, Any] = {"rope_scaling": tiny.LLAMA3, "head_dim": 32, "rope_theta": 10000.0}
    assert np.allclose(factors.astype(np.float64), tiny_gguf.rope_factors(config), rtol=2e-6)


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("block0-1", None), ("block1_3_5", 0), ("block0", 1), ("block1", [True, True, False, True, False])],
)
def test_a_pattern_that_llama_cpp_does_not_know_by_itself_is_a_key(
    name: str, pattern: object, workdir: Path
) -> None:
    changes = {"num_hidden_layers": 2 if pattern == 1 else 6, "query_pre_attn_scalar": 32}
    graph = projects.cut(projects.base(workdir, "gemma3_text" if pattern == 1 else "gemma2", **changes), name)
    shipment = ship.ship(graph, workdir / "m.gguf", unchecked=True)
    fields = projects.read(workdir / "m.gguf").fields
    given = fields.get("gemma2.attention.sliding_window_pattern")
    assert given == (None if pattern == 1 else pattern)
    assert any("window" in note for note in shipment.notes) == (given is not None)
    if pattern == 1:  # then Gemma 3 has no window at all
        assert "gemma3.attention.sliding_window" not in fields


def test_what_a_killed_run_left_goes(base: Path, workdir: Path) -> None:
    left, other = workdir / ".m.gguf.abcdefgh.tmp", workdir / ".m.gguf.x.abcdefgh.tmp"
    for file in (left, other):
        file.touch()
    ship.ship(base, workdir / "m.gguf", unchecked=True)
    assert not left.exists() and other.exists() and not (workdir / ".m.gguf.lock").exists()


def test_a_key_that_was_changed_since_is_not_taken_for_the_variant(base: Path, workdir: Path) -> None:
    graph = projects.cut(base, "attn1+mlp2")
    file = workdir / "m.gguf"
    ship.ship(graph, file, unchecked=True)
    assert not ship.ship(graph, file, unchecked=True).written
    reader = library.GGUFReader(file, "r+")
    reader.fields["deci.rope.freq_base"].parts[-1][0] = 5.0
    del reader
    with pytest.raises(UserError, match=r"m.gguf: deci.rope.freq_base was changed since it was written"):
        ship.ship(graph, file, unchecked=True)


def test_a_tensor_that_was_changed_since_is_not_taken_for_the_variant(base: Path, workdir: Path) -> None:
    graph = projects.cut(base, "attn1+mlp2")
    file = workdir / "m.gguf"
    ship.ship(graph, file, unchecked=True)
    place = projects.tensors(file)["blk.2.attn_q.weight"].start
    with file.open("r+b") as opened:
        opened.seek(place)
        byte = opened.read(1)
        opened.seek(place)
        opened.write(bytes([byte[0] ^ 1]))
    with pytest.raises(UserError, match=r"m.gguf: blk.2.attn_q.weight was changed since it was written"):
        ship.ship(graph, file, unchecked=True)


def test_a_type_may_be_written_as_llama_cpp_writes_it(base: Path, workdir: Path) -> None:
    assert ship.ship(base, workdir / "m.gguf", "Q8_0", unchecked=True).type == "q8_0"


def test_the_librarys_own_words_stay_away(base: Path) -> None:
    arguments = ["ship", str(base), "--to", "gguf", "m.gguf", "--unchecked"]
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    done = subprocess.run(command, env=tiny.environment(), capture_output=True, text=True, check=True)
    assert "gguf:" not in done.stderr and "Writing" not in done.stderr and done.stdout.endswith("m.gguf\n")
