"""What a check of quantised weights compares with, and what it tells beside its verdict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from pipeline import store
from pipeline.evals.check import check, scripted
from pipeline.models.quantisation import files
from pipeline.models.reference import Reference
from pipeline.store.records import CheckRecord
from pipeline.types import SkipSet
from tests import quantised, tiny
from tests.faults import spoil, swap

LIMIT = {"fp32": 1e-5, "fp16": 0.05}


@pytest.mark.parametrize(
    ("model_type", "precision", "skip"),
    [
        ("llama", "int4-fp32", "base"),
        ("llama", "int8-fp16", "attn1+mlp2"),
        pytest.param("gemma3_text", "int4-fp16", "block1", marks=pytest.mark.slow),
        pytest.param("phi", "int8-fp32", "mlp0", marks=pytest.mark.slow),
    ],
)
def test_right_graphs_pass(model_type: str, precision: str, skip: str, workdir: Path) -> None:
    path = quantised.graph(workdir, model_type, precision, skip)
    outcome = check.check(path)
    assert outcome.passed, outcome.summary()
    record = outcome.record
    assert record.precision_name == precision.replace("-", "-b32-") and record.worst is not None
    assert record.worst["max_rel"] < LIMIT[record.precision]
    (quantised_file,) = store.overlays(path)
    assert store.relative(quantised_file, outcome.result) in {file.file for file in record.files or ()}
    assert store.check_passed(path)
    assert (
        record.shifts is not None and record.shifts.weights is not None and record.shifts.kernel is not None
    )
    assert record.shifts.weights.mean_abs > record.shifts.kernel.mean_abs * (3 if "int4" in precision else 0)
    assert record.shifts.kernel.mean_abs > 0 and record.shifts.weights.divergence > 0
    assert len([line for line in outcome.summary().splitlines() if "divergence" in line]) == 2
    quantised_file.write_bytes(quantised_file.read_bytes()[:-1] + b"x")
    assert not store.check_passed(path)


def test_the_shift_is_that_of_pytorch(workdir: Path) -> None:
    """Of the logits of PyTorch with both weights, on the feeds that the check played."""
    path = quantised.graph(workdir, precision="int4-fp32")
    record = check.check(path).record
    assert record.shifts is not None and record.shifts.weights is not None
    feeds = check._feeds(path.parent, check.SEED, None)[0]
    references = [Reference(path.parent, overlays=one) for one in ((), store.overlays(path))]
    differences = []
    for feed in feeds:
        whole, rounded = (scripted.recompute(one, feed.arrays) for one in references)
        names = [name for name in whole if name.endswith("logits")]
        differences += [np.abs(whole[name] - rounded[name]).ravel() for name in names]
    every = np.concatenate(differences)
    assert record.shifts.weights.mean_abs == pytest.approx(every.mean(), rel=1e-4)
    assert record.shifts.weights.max_abs == pytest.approx(every.max(), rel=1e-4)


def test_other_graphs_have_none(workdir: Path) -> None:
    path = quantised.graph(workdir).with_name("base.fp32.onnx")
    outcome = check.check(path)
    assert outcome.passed and outcome.record.shifts is None and outcome.record.quantisation is None
    assert store.result_of(path, "check").name == "base.fp32.check.json"


def test_wrong_blocks_fail(workdir: Path) -> None:
    path = quantised.graph(workdir, precision="int4-fp32")
    mlp = "model.layers.1.mlp"
    outcome = check.check(spoil(path, swap(f"{mlp}.gate_proj.weight.values", f"{mlp}.up_proj.weight.values")))
    assert not outcome.passed and str(outcome.record.localized).startswith("layer 1 mlp")


def test_wrong_scales_fail(workdir: Path) -> None:
    path = quantised.graph(workdir, precision="int8-fp16", skip="attn0")
    mlp = "model.layers.2.mlp"
    outcome = check.check(spoil(path, swap(f"{mlp}.gate_proj.weight.scales", f"{mlp}.up_proj.weight.scales")))
    assert not outcome.passed and str(outcome.record.localized).startswith("layer 2 mlp")


def test_weights_of_another_rounding_are_no_reference(workdir: Path) -> None:
    """The graph's own file is what PyTorch dequantises: were it another's, the record would not match."""
    path = quantised.graph(workdir, precision="int4-fp32")
    assert check.check(path).passed
    record = store.records.read(CheckRecord, store.result_of(path, "check"))
    weights = path.parent / "model.safetensors"
    save_file({n: t * 1.25 for n, t in load_file(weights).items()}, weights, {"format": "pt"})
    assert not store.check_passed(path, record.sha256)


def test_a_checkpoint_of_dequantised_weights_gives_the_same_logits(workdir: Path) -> None:
    """The graph beside transformers on ordinary files, with no code of the quantisation in between."""
    import torch

    path = quantised.graph(workdir, precision="int4-fp32", skip="mlp1")
    plain = tiny.checkpoint(workdir / "plain", num_hidden_layers=3, intermediate_size=128)
    tensors = load_file(plain / "model.safetensors")
    for name, weight in files.dequantised(store.overlays(path)[0]):
        tensors[name] = torch.from_numpy(weight.T.copy())
    save_file(tensors, plain / "model.safetensors", {"format": "pt"})
    from pipeline.engines import opening

    ids = np.random.default_rng(0).integers(3, 96, (1, 9))
    with opening.open_runner(path, exact=True) as runner:
        ours = runner.forward(ids, logits_positions=np.arange(9)[None])[0]
    theirs = Reference(plain, SkipSet((), (1,))).forward(ids, np.ones_like(ids), np.arange(9)[None])[0]
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()
