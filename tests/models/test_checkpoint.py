"""Models by every name, and weights files that lie."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from pipeline import store
from pipeline.graphs import export
from pipeline.models import checkpoint, identity, safetensors_index
from pipeline.types import UserError
from tests import tiny

# Token ids of the SmolLM2 tokenizer as its authors publish it: digits one by one, byte-level, no BOS.
PUBLISHED = {
    "The capital of France is": [504, 3575, 282, 4649, 314],
    "The year 2024": [504, 713, 216, 34, 32, 34, 36],
    "<|im_start|>user\nhi<|im_end|>": [1, 4093, 198, 6004, 2],
}
ODD = [
    "naïve café — 北京 🙂\tx  y\r\n",
    "  leading",
    "3.14159e-10",
    "a\u00a0b",
    "''quotes''",
    "\x00\x7f",
    "مرحبا",
    "1234567890",
]


def test_the_demo_is_what_its_authors_published(demo_root: Path) -> None:
    folder = demo_root / "graphs" / checkpoint.DEMO_MODEL
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text, ids in PUBLISHED.items():
        assert tokenizer(text).input_ids == ids
    for text in ODD:
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert set(tokenizer("x")) == {"input_ids", "attention_mask"}  # what generate() takes
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert not (folder / "tokenizer.model").exists()


def test_gguf_tensors_equal_the_gguf_librarys(demo_root: Path) -> None:
    """The conversion keeps values and undoes llama.cpp's permutation: q·k of two positions is what the file means."""
    import gguf

    tensors = load_file(demo_root / "graphs" / checkpoint.DEMO_MODEL / "model.safetensors")
    theirs = {t.name: t for t in gguf.GGUFReader(checkpoint.demo_gguf()).tensors}
    for ours, name in {
        "model.layers.3.mlp.down_proj.weight": "blk.3.ffn_down.weight",
        "model.norm.weight": "output_norm.weight",
    }.items():
        expected = gguf.dequantize(theirs[name].data, theirs[name].tensor_type).astype(np.float16)
        np.testing.assert_array_equal(tensors[ours].reshape(expected.shape), expected)
    q = gguf.dequantize(theirs["blk.0.attn_q.weight"].data, theirs["blk.0.attn_q.weight"].tensor_type).astype(
        np.float16
    )
    ours_q = tensors["model.layers.0.self_attn.q_proj.weight"]
    assert not np.array_equal(ours_q, q) and np.array_equal(np.sort(ours_q, 0), np.sort(q, 0))
    np.testing.assert_array_equal(
        ours_q[[0, 32, 1, 33]], q[:4]
    )  # pairs (even, odd) of a head of 64 become halves


def test_folder_is_copied_and_in_place_is_not(workdir: Path) -> None:
    source = tiny.checkpoint(workdir / "models" / "tiny", max_shard_size="60KB")
    found = checkpoint.resolve(str(source))
    assert found.folder == Path("graphs/tiny") and len(found.files) > 1
    assert {f.name: f.read_bytes() for f in found.files} == {
        f.name: (source / f.name).read_bytes() for f in found.files
    }
    assert (
        checkpoint.resolve("tiny").identity
        == found.identity
        == checkpoint.resolve(str(source), in_place=True).identity
    )
    path = export.export_base(checkpoint.resolve(str(source), in_place=True))
    assert path.parent.resolve() == source.resolve() and store.read_sidecar(path)["weights"] == found.identity
    other = tiny.checkpoint(workdir / "elsewhere" / "tiny", seed=1)
    with pytest.raises(UserError, match=r"already holds a model from .*models/tiny"):
        checkpoint.resolve(str(other))


def test_a_source_that_became_another_model_is_not_taken_for_the_old_one(workdir: Path) -> None:
    source = tiny.checkpoint(workdir / "models" / "tiny")
    checkpoint.resolve(str(source))
    os.utime(source / "model.safetensors")  # another date, the same bytes
    checkpoint.resolve(str(source))
    tiny.checkpoint(source, seed=1)  # the same headers, other weights
    with pytest.raises(
        UserError, match=r"models/tiny/model\.safetensors has changed since graphs/tiny was made"
    ):
        checkpoint.resolve(str(source))
    assert checkpoint.resolve("tiny").folder == Path(
        "graphs/tiny"
    )  # what was copied can still be used by its own name


def test_a_gguf_that_became_another_is_not_taken_for_the_old_one(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = workdir / "some.gguf"
    file.write_bytes(b"one")
    made = tiny.checkpoint(workdir / "models" / "tiny")
    monkeypatch.setattr(
        "pipeline.models.gguf.convert", lambda _, to: shutil.copytree(made, to, dirs_exist_ok=True)
    )
    checkpoint.resolve(str(file))
    os.utime(file)
    checkpoint.resolve(str(file))
    file.write_bytes(b"two")
    with pytest.raises(UserError, match=r"some\.gguf has changed since graphs/some was made"):
        checkpoint.resolve(str(file))


@pytest.mark.parametrize("name", ["nosuch", "../x", "a b", "", "org/name/too", "missing.gguf"])
def test_unknown_model(name: str, workdir: Path) -> None:
    with pytest.raises(UserError):
        checkpoint.resolve(name)
    assert not list(workdir.iterdir())


def spoil(folder: Path, how: str) -> None:
    """Damages a checkpoint in one way."""
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    name = "model.layers.0.mlp.up_proj.weight"
    if how == "truncated":
        file.write_bytes(raw[:-100])
        return
    if how == "truncated header":
        file.write_bytes(raw[:100])
        return
    if how == "text":
        file.write_text("hello")
        return
    if how == "huge header":
        file.write_bytes((1 << 60).to_bytes(8, "little") + raw[8:])
        return
    if how == "no JSON":
        file.write_bytes(raw[:8] + b"x" * length + raw[8 + length :])
        return
    begin, end = header[name]["data_offsets"]
    header[name] |= {
        "overlap": {"data_offsets": [begin - 4, end - 4]},
        "beyond": {"data_offsets": [begin + 10**9, end + 10**9]},
        "negative": {"data_offsets": [-4, end - begin - 4]},
        "shape": {"shape": [9, 9]},
        "type": {"dtype": "PICKLE"},
        "garbled": {"data_offsets": "x"},
    }[how]
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


SPOILED = {
    "truncated": "truncated: its header promises",
    "truncated header": "truncated or no safetensors",
    "text": "truncated or no safetensors",
    "huge header": "truncated or no safetensors",
    "no JSON": "malformed",
    "overlap": "lies about its offsets",
    "beyond": "lies about its offsets|truncated",
    "negative": "the header lies",
    "shape": "the header lies",
    "type": "has the type PICKLE",
    "garbled": "malformed",
}


@pytest.mark.parametrize("how", SPOILED)
def test_weights_that_lie_are_refused_and_nothing_is_left(how: str, workdir: Path) -> None:
    source = tiny.checkpoint(workdir / "models" / "tiny")
    spoil(source, how)
    with pytest.raises(UserError, match=SPOILED[how]) as caught:
        checkpoint.resolve(str(source))
    assert "\n" not in str(caught.value) and str(source) in str(caught.value)
    assert not Path("graphs/tiny").exists()


def test_config_that_disagrees_with_the_weights(workdir: Path) -> None:
    source = tiny.checkpoint(workdir / "models" / "tiny")
    config = json.loads((source / "config.json").read_text())
    for change, message in [
        ({"intermediate_size": 80}, r"mlp.*is \[96, 64\], but config.json implies \[80, 64\]"),
        ({"num_hidden_layers": 3}, r"implies the weight model.layers.2.*lacks it"),
        ({"num_hidden_layers": None}, "num_hidden_layers is None"),
        ({"hidden_size": "x"}, "hidden_size is 'x'"),
    ]:
        (source / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=message):
            export.export_base(checkpoint.open_checkpoint(source))
        assert not list(source.glob("*.onnx"))


def test_a_copy_that_cannot_be_authored_is_not_left_behind(workdir: Path) -> None:
    source = tiny.checkpoint(workdir / "models" / "tiny", hidden_act="gelu")
    found = checkpoint.resolve(str(source))
    assert found.folder.is_dir()
    with pytest.raises(UserError, match="not authored"):
        export.export_base(found)
    assert not found.folder.exists() and (source / "model.safetensors").is_file()


def test_pickled_weights_are_refused_with_the_conversion(workdir: Path) -> None:
    source = tiny.checkpoint(workdir / "models" / "tiny")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"only pickled weights.*save_pretrained"):
        checkpoint.resolve(str(source))


def test_an_index_that_leaves_the_folder(workdir: Path) -> None:
    source = tiny.checkpoint(workdir / "models" / "tiny")
    (source / safetensors_index.INDEX).write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(UserError, match="outside its folder"):
        checkpoint.resolve(str(source))


def test_verify_hashes_the_contents(workdir: Path) -> None:
    found = checkpoint.resolve(str(tiny.checkpoint(workdir / "models" / "tiny")))
    identity.verify(found)
    raw = bytearray(found.files[0].read_bytes())
    raw[-1] ^= 1
    found.files[0].write_bytes(raw)
    with pytest.raises(UserError, match="is not what was fetched"):
        identity.verify(checkpoint.resolve("tiny"))


class Hub(BaseHTTPRequestHandler):
    """The three routes of the Hugging Face hub that a download needs, over the files of one folder."""

    folder: Path
    commit = "c0ffee" + "0" * 34

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(send_body=False)

    def do_GET(self) -> None:
        self.answer(send_body=True)

    def answer(self, send_body: bool) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"] and parts[2:4] == ["org", "tiny"]:
            siblings = [
                {"rfilename": f.name, "size": f.stat().st_size, "blobId": "b"} for f in self.folder.iterdir()
            ]
            self.reply(
                json.dumps({"id": "org/tiny", "sha": self.commit, "siblings": siblings}).encode(), send_body
            )
        elif parts[:3] == ["org", "tiny", "resolve"] and (file := self.folder / parts[-1]).is_file():
            self.reply(
                file.read_bytes(),
                send_body,
                {"ETag": f'"{store.sha256(file)}"', "X-Repo-Commit": self.commit},
            )
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()

    def reply(self, body: bytes, send_body: bool, headers: dict[str, str] | None = None) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if send_body:
            self.wfile.write(body)


@pytest.fixture
def hub(workdir: Path) -> Iterator[str]:
    """A hub on this machine that serves the folder Hub.folder as org/tiny; yields its URL."""
    Hub.folder = tiny.checkpoint(workdir / "served", max_shard_size="60KB")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def export_from(hub: str, model: str) -> subprocess.CompletedProcess[str]:
    """`pipeline export MODEL` in a process of its own, for huggingface_hub reads its endpoint when it is imported."""
    environment = {**tiny.environment(), "HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "pipeline.cli", "export", model]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_hub_download(hub: str) -> None:
    shutil.copy(Hub.folder / "config.json", Hub.folder / "training.log")  # not wanted
    done = export_from(hub, "org/tiny")
    assert (done.returncode, done.stdout.strip()) == (0, "graphs/tiny/base.fp32.onnx"), done.stderr
    found = checkpoint.resolve("tiny")
    assert found.source.revision == Hub.commit and found.source.origin == "org/tiny"
    assert {f.name for f in found.files} == {f.name for f in Hub.folder.glob("*.safetensors")}
    assert (
        not any(f.is_symlink() for f in found.folder.iterdir())
        and not (found.folder / "training.log").exists()
    )


def test_hub_refusals(hub: str) -> None:
    done = export_from(hub, "org/other")
    assert (
        done.returncode == 2
        and "cannot fetch 'org/other'" in done.stderr
        and len(done.stderr.splitlines()) == 1
    )
    assert not Path("graphs/other").exists()
    for file in Hub.folder.glob("*.safetensors*"):
        file.unlink()
    done = export_from(hub, "org/tiny")
    assert done.returncode == 2 and "no safetensors weights" in done.stderr


def test_offline_is_one_line(workdir: Path) -> None:
    with pytest.raises(UserError, match="cannot fetch 'org/tiny'") as caught:
        checkpoint.resolve("org/tiny")
    assert "\n" not in str(caught.value)
