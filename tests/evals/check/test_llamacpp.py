"""A variant is llama.cpp's too, where llama.cpp can be told to leave the same out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.evals.check import llamacpp
from pipeline.models.reference import Reference
from pipeline.types import SkipSet, UserError
from tests import tiny_gguf
from tests.tiny_gguf import Kind, Tiny

IDS = [(7 * i * i + 3 * i + 5) % 290 + 5 for i in range(60)]


def test_a_variant_without_whole_blocks_is_llama_cpps_too(workdir: Path) -> None:
    """The middle block's tensors are left out of the GGUF, the last one's take its number."""
    source = tiny_gguf.source(workdir / "s", num_hidden_layers=3)
    tensors = tiny_gguf.tensors(source)
    shorter: dict[str, Any] = {name: None for name in tensors if name.startswith("blk.2.")}
    shorter |= {
        name.replace("blk.2.", "blk.1."): array
        for name, array in tensors.items()
        if name.startswith("blk.2.")
    }
    how = Tiny(tensors=shorter, keys={"llama.block_count": 2})
    theirs = llamacpp.answers(tiny_gguf.write(source, workdir / "cut.gguf", how), [IDS], 300, 512)[0]
    reference = Reference(source, SkipSet((1,), (1,)))
    with torch.inference_mode():
        logits = reference.logits_at(torch.tensor([IDS]), torch.tensor([len(IDS) - 1]))[0, 0].double()
    ours = torch.log_softmax(logits, -1).numpy()
    assert np.sqrt(np.mean((ours - theirs) ** 2)) < 0.005 * ours.std()


def test_a_file_that_takes_llama_cpp_down_is_one_line(tmp_path: Path) -> None:
    how = Tiny(kinds={"ffn_norm": Kind.Q8_0})  # it asserts that norms are float32
    file = tiny_gguf.write(tiny_gguf.source(tmp_path / "s"), tmp_path / "m.gguf", how)
    with pytest.raises(UserError, match=r"cannot run .*m\.gguf \(.*unsupported types.*q8_0\)") as caught:
        llamacpp.answers(file, [IDS], 300, 512)
    assert "\n" not in str(caught.value)


def test_the_best_tokens_alone_are_the_same_numbers(tmp_path: Path) -> None:
    file = tiny_gguf.write(tiny_gguf.source(tmp_path / "s"), tmp_path / "m.gguf")
    prompts = [IDS[:20], IDS[:21]]
    for whole, best in zip(
        llamacpp.answers(file, prompts, 300, 512),
        llamacpp.answers(file, prompts, 300, 512, best=9),
        strict=True,
    ):
        known = np.isfinite(best)
        assert known.sum() == 9 and np.allclose(best[known], whole[known], atol=1e-4)
        assert np.nanargmax(best) == np.argmax(whole)
