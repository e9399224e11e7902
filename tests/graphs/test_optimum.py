"""Both roads to Hugging Face optimum: it loads our graphs, and we cut the graphs that it traced."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline import store
from pipeline.engines import opening
from pipeline.evals.check import check
from pipeline.graphs import anatomy, export, graphfile, variants
from pipeline.models import checkpoint
from pipeline.models.reference import Reference
from pipeline.types import BASE, SkipSet, UserError
from tests import overlays, tiny


@pytest.mark.optimum
@pytest.mark.parametrize("name", ["base", "attn1_3", "attn0", "mlp2-3", "block3"])
def test_optimum_loads_and_generates(name: str, workdir: Path) -> None:
    """ORTModelForCausalLM gives PyTorch's greedy tokens, also where some layers have no cache."""
    from optimum.onnxruntime import ORTModelForCausalLM

    base_model = checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny", num_hidden_layers=4, head_dim=16)))
    skip_set = SkipSet.parse(name)
    graph = variants.cut_all_logits(variants.cut(export.export_base(base_model), skip_set))
    model = ORTModelForCausalLM.from_pretrained(base_model.folder, file_name=graph.name, use_cache=True)
    prompt = torch.tensor([[5, 9, 13, 40]])
    tokens = model.generate(prompt, max_new_tokens=8, do_sample=False, eos_token_id=None)
    expected = Reference(base_model.folder, skip_set, "fp32").generate(prompt.numpy(), 8)
    assert tokens[0, prompt.shape[1] :].tolist() == np.asarray(expected).reshape(-1).tolist()


FOREIGN = {
    "gpt_neox": {"rotary_pct": 0.5},
    "gpt2": {"n_positions": 256, "n_inner": 96},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64, "init_std": 0.1, "pad_token_id": 0},
}
"""Families that are not among tiny's, of which gpt2 and opt are not authored here → settings."""


@pytest.fixture(scope="module", params=["llama", "olmo2", "granite", "smollm3", *FOREIGN])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that optimum exported, beside the checkpoint that it came from (../source)."""
    from optimum.exporters.onnx import main_export

    root = tmp_path_factory.mktemp(request.param)
    source, folder = root / "source", root / f"{request.param}-onnx"
    if request.param not in FOREIGN:
        tiny.checkpoint(source, request.param, num_hidden_layers=3, head_dim=16)
    else:
        settings = {**tiny.COMMON, "num_hidden_layers": 3, **FOREIGN[request.param]}
        settings.pop("num_key_value_heads")
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(request.param, **settings))
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases and norms are 0 and 1 in new models
                parameter.data += torch.randn_like(parameter) * 0.1
        model.save_pretrained(source)
    main_export(str(source), folder, task="text-generation-with-past", do_validation=False)
    return folder


@pytest.mark.optimum
@pytest.mark.slow
def test_a_graph_that_optimum_traced_is_cut(exported: Path, workdir: Path) -> None:
    base = export.export_from_onnx(exported)
    assert store.graph_sidecar(base).contract == "optimum" and base.parent == Path("graphs") / exported.name
    joins = anatomy.find(graphfile.load(base), 3, BASE)
    assert [j.sublayer for j in joins] == [(i, kind) for i in range(3) for kind in ("attn", "mlp")]
    ids = np.array([[5, 9, 13, 40, 7], [3, 4, 5, 6, 7]])
    config = AutoConfig.from_pretrained(exported.parent / "source")
    for name in ("base", "attn1", "mlp0", "block2", "attn0+mlp2"):
        skip_set = SkipSet.parse(name)
        path = variants.cut(base, skip_set)
        onnx.checker.check_model(str(path), full_check=True)
        expected = truth(exported.parent / "source", skip_set, ids, config.model_type)
        with opening.open_runner(path) as runner:
            cached = {n.split(".")[1] for n in runner.inputs if n.startswith("past_")}
            assert cached == {str(i) for i in range(3) if i not in skip_set.attention}
            logits, cache = runner.forward(ids[:, :3])
            assert np.abs(logits[:, 0] - expected[:, 2]).max() < 1e-4 * np.abs(expected).max(), name
            for t in (3, 4):
                logits, cache = runner.forward(ids[:, t : t + 1], cache)
            assert np.abs(logits[:, 0] - expected[:, 4]).max() < 1e-4 * np.abs(expected).max(), name


@pytest.mark.optimum
@pytest.mark.parametrize("exported", ["llama", "olmo2", "granite", "smollm3", "gpt_neox"], indirect=True)
@pytest.mark.parametrize("form", ["linear", "rank4", "bias", "run"])
def test_a_graph_that_optimum_traced_is_compensated(form: str, exported: Path, workdir: Path) -> None:
    """The norm's output is found by structure, also where attention and MLP are summed first (GPT-NeoX)."""
    base, source = export.export_from_onnx(exported), exported.parent / "source"
    skip = SkipSet((0, 1), (0, 1)) if form == "run" else SkipSet((0, 1), (1, 2))
    drawn = overlays.of_form(source, skip, form, "linear")
    overlay = base.parent / drawn.name.replace("source", base.parent.name)
    shutil.move(drawn, overlay)
    path = variants.compensate(base, skip, overlay, "linear")
    onnx.checker.check_model(str(path), full_check=True)
    ids = np.array([[5, 9, 13, 40, 7], [3, 4, 5, 6, 7]])
    positions = np.arange(5)[None].repeat(2, 0)
    reference = Reference(source, skip, overlays=[overlay])
    expected = reference.forward(ids, np.ones_like(ids), positions)[0].astype(np.float64)
    with opening.open_runner(path) as runner:
        logits, cache = runner.forward(ids[:, :3])
        assert np.abs(logits[:, 0] - expected[:, 2]).max() < 1e-4 * np.sqrt((expected**2).mean())
        for t in (3, 4):
            logits, cache = runner.forward(ids[:, t : t + 1], cache)
        assert np.abs(logits[:, 0] - expected[:, 4]).max() < 1e-4 * np.sqrt((expected**2).mean())
    assert reference.trace(ids, np.ones_like(ids), positions)


@pytest.mark.optimum
@pytest.mark.parametrize("exported", ["llama"], indirect=True)
def test_folds_into_what_optimum_traced_are_refused(exported: Path, workdir: Path) -> None:
    base, skip = export.export_from_onnx(exported), SkipSet((), (1,))
    overlay = base.parent / "mlp1~fold.safetensors"
    shutil.move(overlays.of_form(exported.parent / "source", skip, "fold"), overlay)
    with pytest.raises(UserError, match="exported elsewhere and keeps its weights in another form"):
        variants.compensate(base, skip, overlay, "fold")


@pytest.mark.optimum
@pytest.mark.slow
@pytest.mark.parametrize("exported", ["gpt2", "opt"], indirect=True)
def test_families_that_are_not_authored_pass_their_check(exported: Path, workdir: Path) -> None:
    base = export.export_from_onnx(exported)
    for name in ("attn1", "mlp0", "block2"):
        outcome = check.check(variants.cut(base, SkipSet.parse(name)), reference=exported.parent / "source")
        rels = [output.max_rel for feed in outcome.record.feeds.values() for output in feed.values()]
        assert outcome.passed and max(rels) < 1e-4, outcome.summary()


def truth(folder: Path, skip_set: SkipSet, ids: np.ndarray, model_type: str) -> np.ndarray:
    """Logits of the source with the sublayers' last projections zeroed: without the sublayers."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    own = {
        "gpt_neox": ("gpt_neox.layers", "attention.dense", "mlp.dense_4h_to_h"),
        "gpt2": ("transformer.h", "attn.c_proj", "mlp.c_proj"),
        "opt": ("model.decoder.layers", "self_attn.out_proj", "fc2"),
    }
    place, *names = own.get(model_type, ("model.layers", "self_attn.o_proj", "mlp.down_proj"))
    layers = model.get_submodule(place)
    for i, kind in [(i, 0) for i in skip_set.attention] + [(i, 1) for i in skip_set.mlp]:
        for parameter in layers[i].get_submodule(names[kind]).parameters():
            parameter.data.zero_()
    with torch.no_grad():
        return model(torch.tensor(ids), use_cache=False).logits.numpy()


def test_a_folder_without_a_cache_is_refused(workdir: Path) -> None:
    base_model = checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny")))
    with pytest.raises(UserError, match=r"no model.onnx and config.json.*optimum-cli"):
        export.export_from_onnx(base_model.folder)
    model = graphfile.load(export.export_base(base_model))
    variants.SkipPass(SkipSet.of("attn", [0, 1]), 2)(model)
    (base_model.folder / "model.onnx").write_bytes(ir.to_proto(model).SerializeToString())
    with pytest.raises(UserError, match="no past_key_values inputs"):
        export.export_from_onnx(base_model.folder)


def test_without_optimum_the_extra_is_named(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base_model = checkpoint.resolve(str(tiny.checkpoint(workdir / "tiny")))
    monkeypatch.setitem(sys.modules, "optimum.exporters.onnx", None)
    with pytest.raises(UserError, match=r"run `pip install 'skip-pipeline\[optimum\]'`"):
        export.optimum_base(base_model.folder)
    assert not (base_model.folder / "optimum").exists()
