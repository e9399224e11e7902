"""Downloads from a hub on this machine: what is fetched, what is refused, what is said."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline import store
from pipeline.models import checkpoint
from pipeline.models import hub as hub_module
from pipeline.types import UserError
from tests import tiny


class Hub(BaseHTTPRequestHandler):
    """The routes of the Hugging Face hub that a download needs, over the files of one folder."""

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
        if parts[:5] == ["api", "models", "org", "tiny", "tree"]:
            tree = [
                {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "b"}
                for f in self.folder.iterdir()
            ]
            self.reply(json.dumps(tree).encode(), send_body)
        elif parts[:4] == ["api", "models", "org", "tiny"]:
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
            is_there = parts[:3] == ["org", "tiny", "resolve"]
            self.send_header("X-Error-Code", "EntryNotFound" if is_there else "RepoNotFound")
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


def export_from(hub: str, model: str, offline: str = "0") -> subprocess.CompletedProcess[str]:
    """`pipeline export MODEL` in a process of its own: huggingface_hub reads its endpoint at import."""
    environment = {**tiny.environment(), "HF_ENDPOINT": hub, "HF_HUB_OFFLINE": offline}
    command = [sys.executable, "-m", "pipeline.cli", "export", model]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_hub_download(hub: str) -> None:
    shutil.copy(Hub.folder / "config.json", Hub.folder / "training.log")  # not wanted
    done = export_from(hub, "org/tiny")
    assert (done.returncode, done.stdout.strip()) == (0, "graphs/tiny/base.fp32.onnx"), done.stderr
    opened = checkpoint.resolve("tiny")
    assert opened.source.revision == Hub.commit and opened.source.origin == "org/tiny"
    assert {f.name for f in opened.files} == {f.name for f in Hub.folder.glob("*.safetensors")}
    assert (
        not any(f.is_symlink() for f in opened.folder.iterdir())
        and not (opened.folder / "training.log").exists()
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
    with pytest.raises(UserError, match=r"cannot fetch 'org/tiny' .*\(HF_HUB_OFFLINE is set\)") as caught:
        checkpoint.resolve("org/tiny")
    assert "\n" not in str(caught.value)


def cached(workdir: Path, source: Path, commit: str) -> Path:
    """Puts a checkpoint into a cache of the hub's, as org/tiny; gives HF_HOME."""
    repository = workdir / "home" / "hub" / "models--org--tiny"
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    for file in source.iterdir():
        blob = repository / "blobs" / store.sha256(file)
        shutil.copy(file, blob)
        blob.chmod(0o444)
        (repository / "snapshots" / commit / file.name).symlink_to(f"../../blobs/{blob.name}")
    return workdir / "home"


CONFIG_OF = "from pipeline.models import hub; print(hub.config('{}'))"


def config_from(endpoint: str, name: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Where config.json of a repository lies, asked for in a process of its own."""
    environment = {**tiny.environment(), "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint, "HF_HOME": str(home)}
    return subprocess.run(
        [sys.executable, "-c", CONFIG_OF.format(name)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_config_alone_is_fetched(hub: str, workdir: Path) -> None:
    done = config_from(hub, "org/tiny", workdir / "home")
    file = Path(done.stdout.strip())
    assert file.read_bytes() == (Hub.folder / "config.json").read_bytes(), done.stderr
    assert [one.name for one in file.parent.iterdir()] == ["config.json"]
    assert "cannot fetch 'org/other'" in config_from(hub, "org/other", workdir / "home").stderr
    (Hub.folder / "config.json").unlink()
    assert "org/tiny has no config.json" in config_from(hub, "org/tiny", workdir / "empty").stderr


def test_without_a_hub_the_caches_config_counts(workdir: Path) -> None:
    home = cached(workdir, tiny.checkpoint(workdir / "source"), Hub.commit)
    done = config_from("http://127.0.0.1:9", "org/tiny", home)
    assert Path(done.stdout.strip()).read_bytes() == (workdir / "source" / "config.json").read_bytes()
    (home / "hub" / "models--org--tiny" / "snapshots" / Hub.commit / "config.json").unlink()
    assert "cannot fetch 'org/tiny'" in config_from("http://127.0.0.1:9", "org/tiny", home).stderr


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "offline"])
def test_without_a_hub_its_cache_counts(
    endpoint: str, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny.checkpoint(workdir / "source")
    monkeypatch.setenv("HF_HOME", str(cached(workdir, source, Hub.commit)))
    start = time.monotonic()
    if endpoint == "offline":
        done = export_from("http://127.0.0.1:9", "org/tiny", offline="1")
    else:
        done = export_from(endpoint, "org/tiny")
    assert time.monotonic() - start < 30  # no minutes of retries
    assert (done.returncode, done.stdout.strip()) == (0, "graphs/tiny/base.fp32.onnx"), done.stderr
    reason = "HF_HUB_OFFLINE is set" if endpoint == "offline" else "no connection"
    assert f"the hub is not asked ({reason}); taking " in done.stderr
    copy = Path("graphs/tiny/model.safetensors")
    assert copy.read_bytes() == (source / "model.safetensors").read_bytes()
    assert not copy.is_symlink() and copy.stat().st_mode & 0o200 and copy.stat().st_nlink == 1
    record = checkpoint.resolve("tiny").source
    assert record.revision == Hub.commit and record.etags["model.safetensors"] == store.sha256(copy)


def test_what_the_cache_has_is_not_downloaded_again(
    hub: str, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(cached(workdir, Hub.folder, Hub.commit)))
    for file in Hub.folder.glob("*.safetensors"):
        file.write_bytes(b"a download of this would be noticed")
    done = export_from(hub, "org/tiny")
    assert done.returncode == 0, done.stderr
    assert checkpoint.resolve("tiny").source.revision == Hub.commit


def test_a_snapshot_that_is_not_whole_is_refused(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = cached(workdir, tiny.checkpoint(workdir / "source"), Hub.commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))
    snapshot = home / "hub" / "models--org--tiny" / "snapshots" / Hub.commit
    command = f"hf download org/tiny --revision {Hub.commit}"
    for absent in ("model.safetensors", "config.json"):
        for is_link in (True, False):
            file = snapshot / absent
            kept, file = file.readlink(), file.rename(workdir / "away")
            if is_link:
                (snapshot / absent).symlink_to("../../blobs/gone")
            for name in ("org/tiny", str(snapshot)):
                with pytest.raises(
                    UserError,
                    match=f"^{snapshot} lacks {absent}: the hub's cache .* of org/tiny; .*`{command}`$",
                ):
                    checkpoint.resolve(name)
                assert not Path("graphs").exists()
            (snapshot / absent).unlink(missing_ok=True)
            (snapshot / absent).symlink_to(kept)
            file.unlink()
    assert checkpoint.resolve("org/tiny").folder == Path("graphs/tiny")


def test_a_snapshot_without_some_of_its_shards_is_refused(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = cached(workdir, tiny.checkpoint(workdir / "source", max_shard_size="60KB"), Hub.commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))
    snapshot = home / "hub" / "models--org--tiny" / "snapshots" / Hub.commit
    first, *others = sorted(snapshot.glob("model-*.safetensors"))
    for shards in ([first], [first, *others]):
        for shard in shards:
            shard.unlink(missing_ok=True)
        with pytest.raises(UserError, match=rf" lacks {shards[-1].name if shards == [first] else 'model-'}"):
            checkpoint.resolve("org/tiny")
        assert not Path("graphs").exists()


def test_a_snapshot_is_proved_before_it_is_copied(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = cached(workdir, tiny.checkpoint(workdir / "source"), Hub.commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))
    snapshot = home / "hub" / "models--org--tiny" / "snapshots" / Hub.commit

    def refuse(candidate: checkpoint.Checkpoint) -> None:
        raise UserError(f"{candidate.folder} holds {candidate.model}, which will not do")

    for name in ("org/tiny", str(snapshot)):
        with pytest.raises(UserError, match=f"^{snapshot} holds tiny, which will not do"):
            checkpoint.resolve(name, proof=refuse)
        assert not Path("graphs").exists()


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["model.safetensors", "model.safetensors.index.json", "model-00001-of-00002.safetensors"], [0]),
        (["model-00001-of-00002.safetensors", "model.safetensors.index.json", "x.bin"], [1, 0]),
        (["config.json", "model.safetensors", "consolidated.safetensors", "tokenizer.json"], [0, 3, 1]),
    ],
)
def test_of_two_sets_of_weights_one_is_fetched(names: list[str], wanted: list[int]) -> None:
    assert hub_module.wanted_files("org/x", names) == [names[k] for k in wanted]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "is an adapter, not a model"),
        (["a.Q4_K_M.gguf"], "holds GGUF files"),
        (["pytorch_model.bin"], "no safetensors weights; pickled weights are code"),
    ],
)
def test_repositories_of_other_kinds(names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        hub_module.wanted_files("org/x", names)
