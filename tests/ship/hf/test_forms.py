"""What has no form for other engines: one line, nothing is changed, and the outline alone says the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.graphs import variants
from pipeline.ship import outline
from pipeline.ship.hf import forms
from pipeline.types import SkipSet, UserError
from tests import overlays, tiny
from tests.ship.hf import folders
from tests.ship.hf.folders import listing
from tests.ship.hf.test_nemotron_nas import compensated


def refused(graph: Path, words: str, **options: Any) -> None:
    """It is refused with these words, nothing is changed, and the outline alone says the same."""
    before = listing(Path.cwd())
    with pytest.raises(UserError, match=re.escape(words)):
        folders.shipped(graph, **options)
    assert listing(Path.cwd()) == before and not Path("out").exists()
    verdict = forms.verdict(outline.of_graph(graph))
    assert words in f"{verdict.refusal} {verdict.unless_forced}"


MODELS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    **{
        name: (name, "attn1", {}, f"single sublayers of {name} have no form that engines load")
        for name in sorted(set(tiny.DIALECTS) - {"llama", "mistral"})
    },
    "window": ("mistral", "attn1", {**folders.NAS}, "it has a window of 7 tokens"),
    "head_dim": ("llama", "attn1", {**folders.NAS, "head_dim": 32}, "head_dim is 32"),
    "attention_bias": ("llama", "mlp1", {**folders.NAS, "attention_bias": True}, "attention_bias is true"),
    "mlp_bias": ("llama", "mlp1", {**folders.NAS, "mlp_bias": True}, "mlp_bias is true"),
    "activation": ("llama", "mlp1", {**folders.NAS, "hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    "width": ("llama", "attn1", {**folders.NAS, "intermediate_size": 96}, "is not a multiple of 256"),
    "no attention": ("llama", "attn0-3", folders.NAS, "no attention is left"),
    "nothing": ("llama", "block0-3", folders.NAS, "no layer is left"),
}


@pytest.mark.parametrize("case", MODELS)
def test_models_that_nemotron_nas_cannot_say(case: str, workdir: Path) -> None:
    model_type, name, changes, words = MODELS[case]
    refused(folders.variant(folders.base(workdir, model_type, **changes), name), words, force=True)


def test_a_width_does_not_matter_where_no_mlp_is_left(workdir: Path) -> None:
    graph = folders.variant(folders.base(workdir, **{**folders.NAS, "intermediate_size": 96}), "attn1+mlp0-3")
    assert folders.shipped(graph).form == "nemotron-nas"


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("linear", "the map for attn1, mlp1 has a bias, for which nemotron-nas has no tensor; compensate"),
        ("rank4", "the map for attn1, mlp1 has a bias"),
        ("bias", "a constant stands in for attn1, mlp1"),
        ("fold", "a constant stands in for attn1, mlp1"),
    ],
)  # fmt: skip
def test_maps_with_a_bias(form: str, words: str, workdir: Path) -> None:
    refused(folders.variant(folders.base(workdir, **folders.NAS), "block1", form), words)


@pytest.mark.parametrize("form", ["run", "run-bias"])
def test_a_map_of_a_run_of_layers(form: str, workdir: Path) -> None:
    base, skip = folders.base(workdir, **folders.NAS), SkipSet.parse("block1-2")
    graph = variants.compensate(base, skip, overlays.of_form(base.parent, skip, form, "linear"), "linear")
    refused(graph, "a map stands in for block1-2")


@pytest.mark.parametrize("name", ["attn0", "attn0-1+mlp0", "block0+attn1"])
def test_a_stream_that_does_not_begin_with_an_attention(name: str, workdir: Path) -> None:
    graph = folders.variant(folders.base(workdir, **folders.NAS), name)
    layer = 0 if name == "attn0" else 1
    refused(graph, f"attention of layer {layer}, the first that has anything left, is left out")
    shipment = folders.shipped(graph, force=True)
    loads = {engine.name: engine.loads for engine in shipment.engines}
    assert loads == {
        "transformers": False, "vLLM": False, "SGLang": False, "TensorRT-LLM": True, "mlx-lm": True,
    }  # fmt: skip
    assert "forced: attention of layer" in shipment.described()


def test_a_map_in_the_first_attention_needs_no_force(workdir: Path) -> None:
    graph = compensated(folders.base(workdir, **folders.NAS), "attn0", "linear")
    assert forms.verdict(outline.of_graph(graph)).unless_forced is None
    assert folders.shipped(graph).form == "nemotron-nas"
