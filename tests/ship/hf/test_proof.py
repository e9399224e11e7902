"""The proof sees a folder that is not the variant."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.ship import outline
from pipeline.ship.hf import proof
from pipeline.types import SkipSet
from tests.ship.hf import folders


@pytest.mark.parametrize("fault", ["ffn", "attention", "tied"])
def test_the_proof_sees_a_wrong_folder_of_nemotron_nas(fault: str, workdir: Path) -> None:
    graph = folders.variant(folders.base(workdir, **folders.NAS), "attn1-2+mlp3")
    folder = folders.shipped(graph).folder
    proof.prove_sublayers(folder)
    blocks = folders.config(folder)["block_configs"]
    if fault == "ffn":
        blocks[0]["ffn"]["ffn_mult"] = 6.1
    if fault == "attention":
        blocks[1]["attention"]["no_op"], blocks[1]["attention"]["n_heads_in_group"] = False, 2
    folders.set_config(folder, block_configs=blocks, tie_word_embeddings=fault == "tied")
    with pytest.raises(proof.NotProved):
        proof.prove_sublayers(folder)


@pytest.mark.parametrize("fault", ["layers", "types", "tensor"])
def test_the_proof_sees_a_wrong_folder(fault: str, workdir: Path) -> None:
    """A layer that would have another window, a key that changed, a tensor that is not there."""
    graph = folders.variant(folders.base(workdir, "gemma2", num_hidden_layers=4), "block0")
    folder = folders.shipped(graph).folder
    given, variant = folders.config(graph.parent), outline.of_graph(graph)
    proof.prove(folder, variant, given)
    if fault == "types":
        folders.set_config(folder, layer_types=["sliding_attention"] * 3)
    elif fault == "layers":
        folders.set_config(folder, rms_norm_eps=0.5)
    else:
        folders.set_config(folder, num_hidden_layers=2, layer_types=["full_attention", "sliding_attention"])
        variant = outline.Outline(variant.config, SkipSet.parse("block0_3"), {})
    with pytest.raises(proof.NotProved):
        proof.prove(folder, variant, given)
