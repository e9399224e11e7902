"""The file of quantised weights: when it is written, how it is read, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import store
from pipeline.models import checkpoint
from pipeline.models.quantisation import blocks, files
from pipeline.models.quantisation.blocks import Blocks
from pipeline.models.quantisation.names import Quantisation
from pipeline.store import records
from pipeline.store.records import QuantisedRecord
from pipeline.types import UserError
from tests import quantised, tiny


def test_it_is_written_once_a_form_and_anew_where_it_or_the_weights_changed(workdir: Path) -> None:
    source, form = quantised.model(workdir), Quantisation(4, 32)
    path = files.ensure(source, form)
    first, inode = path.read_bytes(), path.stat().st_ino
    assert files.ensure(source, form) == path and path.stat().st_ino == inode
    assert files.ensure(source, Quantisation(8, 32)) != path
    path.write_bytes(first[:-1] + bytes([first[-1] ^ 1]))
    assert files.ensure(source, form).read_bytes() == first
    weights = source.folder / "model.safetensors"
    save_file({name: tensor * 1.5 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    again = files.ensure(checkpoint.open_checkpoint(source.folder), form)
    assert again == path and path.read_bytes() != first


def test_the_checkpoint_stays_what_it_was(workdir: Path) -> None:
    """No shard of it is the file of quantised weights, by whatever name it goes."""
    source = quantised.model(workdir)
    before = source.identity, dict(source.tensors)
    files.ensure(source, Quantisation(4, 32))
    again = checkpoint.open_checkpoint(source.folder)
    assert (again.identity, again.tensors) == before
    assert again.weights.others == () and [file.name for file in again.files] == ["model.safetensors"]


def test_widths_that_blocks_do_not_divide(workdir: Path) -> None:
    source = quantised.model(workdir, intermediate_size=96)
    with pytest.raises(UserError, match=r"mlp\.down_proj\.weight has 96 inputs.*take --block-size 32$"):
        files.ensure(source, Quantisation(4, 64))
    odd = quantised.model(workdir, name="odd", intermediate_size=72)
    with pytest.raises(UserError, match=r"72 inputs.*take --precision fp16$"):
        files.ensure(odd, Quantisation(4, 32))
    assert not list(workdir.rglob("quantised.*"))


def test_files_that_are_damaged(workdir: Path) -> None:
    path = files.ensure(quantised.model(workdir), Quantisation(4, 32))
    tensors = load_file(path)
    name = "model.layers.0.mlp.down_proj.weight"
    for change, says in (
        ({f"{name}.values": tensors[f"{name}.values"][:-8].clone()}, "do not fit together"),
        ({f"{name}.scales": tensors[f"{name}.scales"].float()}, "do not fit together"),
        ({f"{name}.scales": tensors[f"{name}.scales"][:3].clone()}, "do not fit together"),
        ({"other": torch.zeros(4)}, "something beside"),
    ):
        save_file({**tensors, **change}, workdir / "damaged.safetensors")
        with pytest.raises(UserError, match=says):
            files.stored(workdir / "damaged.safetensors")


def test_a_record_of_another_form_proves_nothing(workdir: Path) -> None:
    path = files.ensure(quantised.model(workdir), Quantisation(4, 32))
    record = store.sidecar_path(path)
    record.write_text(json.dumps({**json.loads(record.read_text()), "version": 0}))
    inode = path.stat().st_ino
    assert files.ensure(checkpoint.open_checkpoint(path.parent), Quantisation(4, 32)).stat().st_ino != inode
    assert json.loads(record.read_text())["version"] == files.VERSION


def test_nothing_else_is_taken_for_one(workdir: Path) -> None:
    from pipeline.models import safetensors_index

    folder = tiny.checkpoint(workdir / "m")
    assert not files.is_quantised(safetensors_index.read_index([folder / "model.safetensors"]))


class _Noughts:
    """Rounds everything to 0, and says so; as GPTQ's, it may know more of a weight than its numbers."""

    def __init__(self) -> None:
        self.asked: dict[str, tuple[int, ...]] = {}

    def __call__(self, name: str, weight: np.ndarray, bits: int, block_size: int) -> Blocks:
        self.asked[name] = (*weight.shape, bits, block_size)
        made = blocks.rounded(weight, bits, block_size)
        return Blocks(np.zeros_like(made.values), made.scales)

    def refuse_other(self, record: QuantisedRecord, path: Path) -> None:
        raise UserError(f"{path} was rounded by {record.method}")

    def fields(self, record: Path) -> dict[str, Any]:
        assert record.suffix == ".json"
        return {"rounded_on": {"texts": {"from": "nothing"}, "samples": 1, "length": 2}}


def test_a_rounding_of_ones_own(workdir: Path) -> None:
    source, how = quantised.model(workdir), _Noughts()
    path = files.ensure(source, Quantisation(4, 32), how)
    assert how.asked["model.layers.0.mlp.down_proj.weight"] == (128, 64, 4, 32)
    assert how.asked["lm_head.weight"] == (64, 96, 8, 32) and len(how.asked) == 3 * 7 + 1
    assert not any(weight.any() for _, weight in files.dequantised(path))
    record = records.read(QuantisedRecord, store.sidecar_path(path))
    assert record.rounded_on is not None and record.rounded_on.texts.origin == "nothing"
    how.asked.clear()
    with pytest.raises(UserError, match=r"quantised\.int4-b32-rtn\.safetensors was rounded by rtn"):
        files.ensure(source, Quantisation(4, 32), how)
    assert files.ensure(source, Quantisation(4, 32)) == path and not how.asked


def test_a_method_that_reads_text_is_never_replaced_by_another(workdir: Path) -> None:
    """Whoever has no text to round by takes what is there, or is told what writes it."""
    source, form = quantised.model(workdir), Quantisation(4, 32, "gptq")
    says = r"gptq\.safetensors is missing, .*`pipeline export m --precision int4-b32-gptq`$"
    with pytest.raises(UserError, match=says):
        files.ensure(source, form)
    assert not list(workdir.rglob("*quantised.*"))
    path = files.ensure(source, form, _Noughts())
    assert files.ensure(source, form) == path != files.ensure(source, Quantisation(4, 32))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="is missing, damaged or of other weights"):
        files.ensure(source, form)


def test_an_interrupted_rounding_leaves_nothing(workdir: Path) -> None:
    class Stopped(_Noughts):
        def __call__(self, name: str, weight: np.ndarray, bits: int, block_size: int) -> Blocks:
            if len(self.asked) == 5:
                raise KeyboardInterrupt
            return super().__call__(name, weight, bits, block_size)

    source, form = quantised.model(workdir), Quantisation(4, 32, "gptq")
    with pytest.raises(KeyboardInterrupt):
        files.ensure(source, form, Stopped())
    assert not list(workdir.rglob("*quantised.*"))
    assert files.ensure(source, form, _Noughts()).is_file()
