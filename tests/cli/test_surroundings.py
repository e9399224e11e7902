"""Whole commands where the system is against them: limits, links, names, a locale without UTF-8."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import results, tiny, tiny_gguf

NAME = "modèle 漢"
NO_UTF8 = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def command(
    *arguments: object,
    cwd: Path | None = None,
    limit: Callable[[], object] | None = None,
    **environment: str,
) -> subprocess.CompletedProcess[bytes]:
    """A command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *map(str, arguments)],
        cwd=cwd,
        env={**tiny.environment(), "PIPELINE_MODEL": "", **environment},
        capture_output=True,
        preexec_fn=limit,
        timeout=300,
        check=False,
    )


def refusal(done: subprocess.CompletedProcess[bytes]) -> str:
    """The one line of a command that ends with 2."""
    words = done.stderr.decode(errors="backslashreplace")
    assert done.returncode == 2 and "Traceback" not in words, words
    *_, line = words.strip().splitlines()
    assert line.startswith("error: ") and line.isprintable(), line
    return line


def test_a_file_that_may_not_grow_is_one_line_and_leaves_nothing(workdir: Path) -> None:
    tiny.checkpoint(workdir / "source")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    line = refusal(command("export", "source", limit=limit))
    assert "File too large" in line and "free some space or change the folder" in line
    assert not list(workdir.glob("graphs/*"))


def test_a_name_that_no_file_can_have_is_one_line(workdir: Path) -> None:
    assert "File name too long" in refusal(command("export", "x" * 300))
    assert "File name too long" in refusal(command("sweep", f"{'x' * 300}.toml"))


def test_links_that_lead_in_a_circle_are_one_line(workdir: Path) -> None:
    tiny.checkpoint(workdir / "source")
    (workdir / "graphs").symlink_to("graphs")
    assert "link" in refusal(command("export", "source")) and (workdir / "graphs").is_symlink()
    (workdir / "graphs").unlink()
    (workdir / "loop.txt").symlink_to("loop.txt")
    assert "loop.txt" in refusal(command("calibrate", "source", "--texts", "loop.txt"))


def test_a_folder_that_vanished_under_a_command_is_one_line(workdir: Path) -> None:
    gone = workdir / "gone"
    gone.mkdir()
    line = refusal(command("export", tiny.checkpoint(workdir / "source"), cwd=gone, limit=gone.rmdir))
    assert "No such file or directory" in line


def test_a_name_that_is_no_utf8_is_one_line(workdir: Path) -> None:
    folder = workdir / os.fsdecode(b"mod\xe8les")
    tiny.checkpoint(workdir / "tiny").rename(workdir / "model")
    folder.mkdir()
    (workdir / "model").rename(folder / "tiny")
    line = refusal(command("export", folder / "tiny"))
    assert "a name or a text is no UTF-8" in line and "udce8les" in line
    assert not list(workdir.glob("graphs/*"))


@pytest.mark.slow  # a dozen processes
def test_a_locale_without_utf8_gives_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, printed = [], []
    for environment in ({"PYTHONUTF8": "1"}, NO_UTF8):
        root = tmp_path / f"é{len(files)}"
        tiny_gguf.source(root / NAME, num_hidden_layers=4)
        (root / "texte.txt").write_text("Une idée, 漢字. " * 400, encoding="utf-8")
        monkeypatch.chdir(root)
        results.small_grid(NAME, 4)
        said = []
        for arguments in (
            ["export", NAME, "--skip", "attn1"],
            ["calibrate", NAME, "--texts", "texte.txt", "--samples", "3", "--length", "16"],
            ["list"],
            ["report"],
            ["show", f"graphs/{NAME}/attn1.fp32.onnx"],
        ):
            done = command(*arguments, cwd=root, **environment)
            assert done.returncode == 0, done.stderr.decode()
            said.append(done.stdout.replace(os.fsencode(root), b"ROOT"))
        names = {str(file.relative_to(root)) for file in root.rglob("*") if ".lock" not in file.name}
        kinds = ("*.onnx", "*.md", "*.csv", "similarity.npz", "config.json")
        same = {str(f.relative_to(root)): f.read_bytes() for kind in kinds for f in root.rglob(kind)}
        files.append((names, same))
        printed.append(said[:3])
    names, same = files[0]
    assert f"graphs/{NAME}/attn1.fp32.onnx" in names and any(name.endswith(".md") for name in same)
    assert files[0] == files[1]
    assert printed[0] == printed[1] and NAME.encode() in printed[1][0]


def test_a_pipe_that_has_no_letter_for_a_name_gets_an_escape(workdir: Path) -> None:
    tiny.checkpoint(workdir / NAME)
    done = command("export", NAME, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr.decode()
    assert b"graphs/mod\\xe8le \\u6f22/base.fp32.onnx" in done.stdout
    line = refusal(command("export", "ñothing", PYTHONIOENCODING="latin-1:strict"))
    assert "no model" in line
