"""What a model is made from, seen from the command line: the files that transformers would load alone.

The right value is transformers' model on the user's own folder.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pipeline.store import records
from pipeline.types import UserError
from tests import tiny
from tests.commands import run
from tests.truth import graph_logits, loaded, logits_of, relative_error

IDS = np.random.default_rng(0).integers(3, tiny.WORDS, (2, 20))
OLD, NEW = "a" * 40, "b" * 40


def logits(folder: Path) -> np.ndarray:
    """transformers' logits [B, T, V] of what it loads from a folder."""
    return logits_of(loaded(folder), IDS)


def error(graph: Path, expected: np.ndarray) -> float:
    """max|a - b| / rms(b) of a graph's logits at every position."""
    return relative_error(graph_logits(graph, IDS), expected)


def model(folder: Path, **changes: Any) -> Path:
    """A random model with a tokenizer."""
    return tiny.tokenizer(tiny.checkpoint(folder, vocab_size=tiny.WORDS, **changes))


def put(file: Path, **tensors: torch.Tensor) -> None:
    """Adds tensors to a file of weights, or puts others in their place."""
    save_file({**load_file(file), **tensors}, file, metadata={"format": "pt"})


def export(capsys: pytest.CaptureFixture[str], name: object) -> Path:
    """The base graph of a model."""
    return Path(run(capsys, "export", name).strip())


@pytest.mark.parametrize("shards", ["gone", "complete"])
def test_one_file_beside_a_stale_index(
    shards: str, workdir: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    folder = model(workdir / "hf" / "stale", max_shard_size="100KB", seed=0)
    before = logits(folder)
    other = tiny.checkpoint(workdir / "other", vocab_size=tiny.WORDS, seed=1)
    shutil.copy(other / "model.safetensors", folder)
    if shards == "gone":
        for shard in folder.glob("model-*"):
            shard.unlink()
    graph = export(capsys, "hf/stale")
    assert "taking model.safetensors, as transformers does; not taken: model" in caplog.text
    assert [file.name for file in graph.parent.glob("model*")] == ["model.safetensors"]
    assert error(graph, logits(folder)) < 1e-4 < 0.1 < error(graph, before)


def test_a_tensor_in_two_shards(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model(workdir / "hf" / "twice", max_shard_size="100KB")
    first, second, *_ = sorted(folder.glob("model-*"))
    name, tensor = next(iter(load_file(first).items()))
    put(second, **{name: tensor})
    assert error(export(capsys, "hf/twice"), logits(folder)) < 1e-4
    shutil.rmtree("graphs")
    for other in (tensor + 1, tensor.to(torch.bfloat16)):
        put(second, **{name: other})
        with pytest.raises(UserError, match=f"both hold the tensor '{name}', and differ"):
            run(capsys, "export", "hf/twice")
        assert not Path("graphs/twice").exists()


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_weights_of_a_base_model(model_type: str, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = tiny.checkpoint(workdir / "whole", model_type, vocab_size=tiny.WORDS, tie_word_embeddings=True)
    bare = tiny.tokenizer(workdir / "hf" / "bare")
    AutoModelForCausalLM.from_pretrained(whole).model.save_pretrained(bare)
    assert "norm.weight" in load_file(bare / "model.safetensors")
    graph = export(capsys, "hf/bare")
    assert error(graph, logits(whole)) < 1e-4 > error(graph, logits(bare))


def test_a_base_model_without_its_head(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = tiny.checkpoint(workdir / "whole", vocab_size=tiny.WORDS)
    bare = tiny.tokenizer(workdir / "hf" / "bare")
    AutoModelForCausalLM.from_pretrained(whole).model.save_pretrained(bare)
    with pytest.raises(UserError, match=r"lm_head\.weight"):  # transformers would draw it at random
        run(capsys, "export", "hf/bare")


def test_a_tokenizer_that_comes_later_arrives(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny.checkpoint(workdir / "hf" / "m", vocab_size=tiny.WORDS)
    graph = export(capsys, "hf/m")
    assert not (graph.parent / "tokenizer.json").exists()
    tiny.tokenizer(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    assert export(capsys, "hf/m") == graph
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (graph.parent / name).read_bytes() == (folder / name).read_bytes()
    template = {**json.loads((folder / "tokenizer_config.json").read_text()), "chat_template": "{{ 1 }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(template))
    (graph.parent / "generation_config.json").write_text("{}")  # an edit of the copy alone stays
    export(capsys, "m")
    assert "chat_template" in (graph.parent / "tokenizer_config.json").read_text()
    assert (graph.parent / "generation_config.json").read_text() == "{}"


@pytest.fixture
def cache(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """org/tiny in a hub's cache: two revisions, main is the second; links to blobs that may only be read."""
    repository = workdir / "cache" / "hub" / "models--org--tiny"
    for folder in ("blobs", "refs"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs" / "main").write_text(NEW)
    for revision, seed in ((OLD, 0), (NEW, 1)):
        snapshot = repository / "snapshots" / revision
        snapshot.mkdir(parents=True)
        for file in model(workdir / f"seed{seed}", seed=seed).iterdir():
            blob = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
            if not blob.exists():
                shutil.copy(file, blob)
                blob.chmod(0o444)
            (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(repository.parent))
    return repository


@pytest.mark.parametrize(
    ("name", "seed"), [("org/tiny", 1), ("org/tiny@main", 1), (f"org/tiny@{NEW}", 1), (f"org/tiny@{OLD}", 0)]
)
def test_the_cache_is_used_offline_by_id(
    name: str, seed: int, cache: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = export(capsys, name)
    assert error(graph, logits(workdir / f"seed{seed}")) < 1e-4
    source = records.read(records.CheckpointSource, graph.with_name("source.json"))
    assert (source.kind, source.origin, source.revision) == ("hub", name, NEW if seed else OLD)
    for file in graph.parent.iterdir():
        assert not file.is_symlink() and file.stat().st_mode & 0o200
    assert export(capsys, name) == graph


def test_a_snapshot_is_named_after_its_model(
    cache: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot = cache / "snapshots" / OLD
    before = sorted(snapshot.iterdir())
    with pytest.raises(UserError, match="in the hub's cache, which is not written to; leave --in-place out"):
        run(capsys, "export", snapshot, "--in-place")
    graph = export(capsys, snapshot)
    assert graph == Path("graphs/tiny/base.fp32.onnx") and error(graph, logits(workdir / "seed0")) < 1e-4
    with pytest.raises(UserError, match=rf"from org/tiny@{OLD}; to have org/tiny \({NEW}\), move it away"):
        run(capsys, "export", "org/tiny")  # main is another revision
    assert sorted(snapshot.iterdir()) == before


@pytest.mark.slow  # peft in a process of its own
def test_the_merge_that_is_advised_works(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from peft import LoraConfig, get_peft_model

    base = model(workdir / "base")
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(init_lora_weights=False, target_modules=["q_proj"]),
    )
    adapted.save_pretrained("lora's")
    with pytest.raises(UserError, match=r"is an adapter of .* not a model; merge it") as refusal:
        run(capsys, "export", "lora's")
    program, option, code = shlex.split(str(refusal.value).split("`")[1])
    assert (program, option) == ("python", "-c")
    subprocess.run([sys.executable, option, code], check=True, env=tiny.environment(), capture_output=True)
    with torch.no_grad():
        expected = adapted.merge_and_unload().eval()(torch.tensor(IDS), use_cache=False).logits.numpy()
    assert error(export(capsys, "merged"), expected) < 1e-4 < error(export(capsys, base), expected)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["consolidated.00.pth", "params.json"], r"only pickled weights \(consolidated.00.pth\)"),
        (["pytorch_model.bin", "config.json"], r"convert them with `python -c .*save_pretrained"),
        (["a.gguf", "b.gguf", "config.json"], "holds GGUF files; name one: hf/x/a.gguf, hf/x/b.gguf"),
        (["consolidated.safetensors"], "take the Hugging Face form"),
        (["model-00001-of-00002.safetensors", "config.json"], "no model.safetensors.index.json"),
        (["config.json"], "holds no model.safetensors"),
    ],
)
def test_folders_without_safetensors(
    files: list[str], says: str, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = workdir / "hf" / "x"
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).write_text("{}")
    with pytest.raises(UserError, match=says) as refusal:
        run(capsys, "export", "hf/x")
    assert "\n" not in str(refusal.value) and not Path("graphs/x").exists()


@pytest.mark.parametrize("name", ["Llama 3 ü (v1.0)", "日本 model", "c%d {x}", "q'uo\"te", "-dash"])
def test_odd_names_of_folders(name: str, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model(workdir / "my models" / name)
    expected = logits(folder)
    graph = export(capsys, folder)
    assert graph == Path("graphs") / name / "base.fp32.onnx" and error(graph, expected) < 1e-4
    in_place = Path(run(capsys, "export", folder, "--in-place").strip())
    assert in_place.parent.samefile(folder) and error(in_place, expected) < 1e-4
