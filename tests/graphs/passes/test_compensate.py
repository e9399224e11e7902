"""The maps in a graph: their nodes, their numbers beside PyTorch's, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import store
from pipeline.engines import opening
from pipeline.graphs import anatomy, export, graphfile, variants
from pipeline.models import checkpoint
from pipeline.models.compensation import MapPlace
from pipeline.models.reference import Reference
from pipeline.types import Precision, SkipSet, UserError
from tests import overlays, tiny

SKIP = SkipSet((1, 2), (0, 2))
SHAPE = (3, 12)


def bases(workdir: Path, model_type: str, precision: Precision = "fp32") -> tuple[Path, Path]:
    """(folder, base graph) of a tiny model of four layers."""
    folder = tiny.checkpoint(workdir / "graphs" / "m", model_type, num_hidden_layers=4)
    return folder, export.export_base(checkpoint.open_checkpoint(folder), precision)


def batch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three rows: padded left, padded right, whole."""
    ids, mask = np.random.default_rng(0).integers(3, 96, SHAPE), np.ones(SHAPE, np.int64)
    mask[0, :4] = mask[1, 9:] = 0
    return ids, mask, np.maximum(mask.cumsum(1) - 1, 0)


def error(graph: Path, reference: Reference) -> float:
    """max|a − b| / rms(b) of the logits at every token that is none of padding: prefill, then four steps."""
    ids, mask, positions = batch()
    expected = reference.forward(ids, mask, positions)[0]
    with opening.open_runner(graph) as runner:
        wanted = np.arange(8)[None].repeat(3, 0)
        logits, cache = runner.forward(ids[:, :8], attention_mask=mask[:, :8], logits_positions=wanted)
        parts = [logits]
        for t in range(8, 12):
            logits, cache = runner.forward(ids[:, t : t + 1], cache, attention_mask=mask[:, : t + 1])
            parts.append(logits)
    kept = mask == 1
    kept[1, 8:] = False  # a padded row has no step that means anything
    a, b = np.concatenate(parts, 1)[kept].astype(np.float64), expected[kept].astype(np.float64)
    return float(np.abs(a - b).max() / np.sqrt((b**2).mean()))


@pytest.mark.parametrize("model_type", tiny.DIALECTS)
@pytest.mark.parametrize("form", ["linear", "rank4", "bias", "fold+rank4", "run"])
def test_the_numbers_are_those_of_pytorch(model_type: str, form: str, workdir: Path) -> None:
    folder, base = bases(workdir, model_type)
    skip = SkipSet((1, 2), (1, 2)) if form == "run" else SKIP
    overlay = overlays.of_form(folder, skip, form, "linear")
    graph = variants.compensate(base, skip, overlay, "linear")
    assert error(graph, Reference(folder, skip, overlays=[overlay])) < 1e-4
    assert error(graph, Reference(folder, skip)) > 1e-2  # the maps do something
    assert "present.1.key" not in {value.name for value in graphfile.load(graph).graph.outputs}


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "phi"])
def test_a_run_may_have_a_bias_alone(model_type: str, workdir: Path) -> None:
    """What folding a whole run into the projection before it leaves there."""
    folder, base = bases(workdir, model_type)
    skip = SkipSet((1, 2), (1, 2))
    overlay = overlays.of_form(folder, skip, "run-bias", "fold")
    graph = variants.compensate(base, skip, overlay, "fold")
    assert error(graph, Reference(folder, skip, overlays=[overlay])) < 1e-4


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "granite", "phi", "olmo2"])
def test_fp16_is_as_near_as_pytorch_in_fp16(model_type: str, workdir: Path) -> None:
    folder, base = bases(workdir, model_type, "fp16")
    for form, skip in (("linear", SKIP), ("run", SkipSet((0, 1), (0, 1))), ("bias", SKIP)):
        overlay = overlays.of_form(folder, skip, form, "linear")
        graph = variants.compensate(base, skip, overlay, "linear")
        whole = Reference(folder, skip, overlays=[overlay])
        half = Reference(folder, skip, "fp16", overlays=[overlay])
        ids, mask, positions = batch()
        a, b = (one.forward(ids, mask, positions)[0][mask == 1].astype(np.float64) for one in (half, whole))
        noise = np.abs(a - b).max() / np.sqrt((b**2).mean())
        assert error(graph, whole) < max(4 * noise, 1e-2)


def test_nodes_bear_the_names_of_their_places(workdir: Path) -> None:
    folder, base = bases(workdir, "llama")
    overlay = overlays.of_form(folder, SKIP, "rank4")
    graph = graphfile.load(variants.compensate(base, SKIP, overlay, "rank4")).graph
    ours = [node.name for node in graph if "/layers.1/attention/" in str(node.name)]
    place = "/layers.1/attention"
    assert ours == [
        "/layers.1/attention/input_layernorm",
        f"{place}/compensation/MatMul",
        f"{place}/compensation/MatMul_1",
        f"{place}/compensation/Add",
        f"{place}/residual",
    ]
    names = {n for n, v in graph.initializers.items() if isinstance(v.const_value, ir.ExternalTensor)}
    tensors = {n: graph.initializers[n].const_value for n in names}
    at_overlay = {
        n for n, t in tensors.items() if isinstance(t, ir.ExternalTensor) and t.location == overlay.name
    }
    assert at_overlay == set(load_file(overlay))
    assert len({node.name for node in graph}) == len(graph)


def test_a_runs_map_reads_the_stream_and_a_bias_is_one_add(workdir: Path) -> None:
    folder, base = bases(workdir, "llama")
    skip = SkipSet((1, 2), (1, 2))
    overlay = overlays.of_form(folder, skip, "run", "linear")
    graph = graphfile.load(variants.compensate(base, skip, overlay, "linear")).graph
    names = [
        str(node.name) for node in graph if "/layers.1/" in str(node.name) or "/layers.2/" in str(node.name)
    ]
    assert names == [f"/layers.1/compensation/{part}" for part in ("MatMul", "Add", "residual")]
    product = next(node for node in graph if node.name == names[0])
    assert product.inputs[0].producer().name == "/layers.0/mlp/residual"  # type: ignore[union-attr]
    overlay = overlays.of_form(folder, SKIP, "bias")
    graph = graphfile.load(variants.compensate(base, SKIP, overlay, "bias")).graph
    (add,) = (node for node in graph if "/layers.2/attention/" in str(node.name))
    assert add.op_type == "Add" and add.inputs[1].name == "compensation.attn2.bias"  # type: ignore[union-attr]


def test_what_has_no_map_is_left_out(workdir: Path) -> None:
    folder, base = bases(workdir, "phi")
    overlay = overlays.of_form(folder, SKIP, "linear")
    tensors = {name: tensor for name, tensor in load_file(overlay).items() if ".attn1." in name}
    save_file(tensors, overlay)
    graph = variants.compensate(base, SKIP, overlay, "linear")
    assert error(graph, Reference(folder, SKIP, overlays=[overlay])) < 1e-4
    stages = anatomy.stages(graphfile.load(graph), 4, SKIP)
    assert [one.place.name for one in stages if isinstance(one, anatomy.MapJoin)] == ["attn1"]
    assert [one.sublayer for one in stages if isinstance(one, anatomy.Join)] == [
        (0, "attn"), (1, "mlp"), (3, "attn"), (3, "mlp"),
    ]  # fmt: skip


def test_the_digest_is_in_the_graph(workdir: Path) -> None:
    folder, base = bases(workdir, "llama")
    overlay = overlays.of_form(folder, SKIP, "bias")
    first = variants.compensate(base, SKIP, overlay, "bias")
    digest = graphfile.load(first).metadata_props["compensation_sha256"]
    assert digest == store.weights.state(overlay, full=True).sha256
    before = store.sha256(first)
    overlays.of_form(folder, SKIP, "bias", seed=1)
    again = variants.compensate(base, SKIP, overlay, "bias")
    assert again == first and store.sha256(again) != before


def spoiled(overlay: Path, fault: str) -> None:
    """Rewrites an overlay with one thing wrong."""
    tensors = load_file(overlay)
    place, kept = MapPlace.of((1, "attn")), MapPlace.of((3, "mlp"))
    if fault == "kept":
        tensors[kept.tensor("bias")] = torch.zeros(64)
    elif fault == "width":
        tensors = {place.tensor("factor0"): torch.zeros(32, 32), place.tensor("bias"): torch.zeros(32)}
    elif fault == "parts":
        del tensors[place.tensor("bias")]
    elif fault == "foreign":
        tensors["model.layers.9.mlp.down_proj.weight"] = torch.zeros(64, 96)
    elif fault == "skipped weight":
        tensors["model.layers.0.mlp.down_proj.weight"] = torch.zeros(64, 96)
    elif fault == "dtype":
        tensors["model.layers.0.self_attn.o_proj.weight"] = torch.zeros(64, 128, dtype=torch.float16)
    elif fault == "name":
        tensors["compensation.attn1.scale"] = torch.zeros(64)
    elif fault == "twice":
        tensors[MapPlace(2, 2, "block").tensor("bias")] = torch.zeros(64)
    save_file(tensors, overlay)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("kept", "has a map for mlp3, which attn1-2.mlp0_2 does not leave out"),
        ("width", "the map for attn1 has 32 outputs, and the model's hidden size is 64"),
        ("parts", "the parts of compensation.attn1 do not fit together"),
        ("foreign", r"model.layers.9.mlp.down_proj.weight F32 \[64, 96\], and the graph has no such weight"),
        ("skipped weight", "layers.0.mlp.down_proj.weight .* the graph has no such weight"),
        ("dtype", r"layers.0.self_attn.o_proj.weight F16 \[64, 128\], and the graph has no such weight"),
        ("name", "'compensation.attn1.scale', which is no part of a compensation"),
        ("twice", "(attn2 and block2|block2 and mlp2) stand for the same sublayer"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_written(fault: str, words: str, workdir: Path) -> None:
    folder, base = bases(workdir, "llama")
    overlay = overlays.of_form(folder, SKIP, "linear")
    spoiled(overlay, fault)
    with pytest.raises(UserError, match=words) as caught:
        variants.compensate(base, SKIP, overlay, "linear")
    assert "\n" not in str(caught.value)
    assert not list(folder.glob("*~linear*.onnx")) and not list(folder.glob("*~linear*.json"))
