"""Snapshots in the hub's cache; the right value is what huggingface_hub itself takes for one."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from pipeline.models import hub_cache

COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """org/my.model_x in a cache: two commits; main is the second, the tag v1 the first."""
    place = tmp_path / "hub" / "models--org--my.model_x"
    for revision in (COMMIT, OTHER):
        (place / "snapshots" / revision).mkdir(parents=True)
        (place / "blobs").mkdir(exist_ok=True)
        (place / "blobs" / revision[:8]).write_text(revision)
        (place / "snapshots" / revision / "config.json").symlink_to(f"../../blobs/{revision[:8]}")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(OTHER)
    (place / "refs" / "v1").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place.parent))
    return place


@pytest.mark.parametrize(("revision", "commit"), [("main", OTHER), ("v1", COMMIT), (COMMIT, COMMIT)])
def test_a_repository_by_id(revision: str, commit: str, repository: Path) -> None:
    snapshot = hub_cache.find("org/my.model_x", revision)
    theirs = snapshot_download(
        "org/my.model_x", revision=revision, cache_dir=repository.parent, local_files_only=True
    )
    assert snapshot and snapshot.folder == Path(theirs) and snapshot.revision == commit
    assert (snapshot.repo, snapshot.name) == ("org/my.model_x", "my.model_x")
    assert snapshot.origin == f"org/my.model_x@{commit}"
    assert snapshot.etags() == {"config.json": commit[:8]}


@pytest.mark.parametrize("revision", ["v2", "c" * 40, "../refs/main", "../../../x"])
def test_what_the_cache_has_not(revision: str, repository: Path) -> None:
    assert hub_cache.find("org/my.model_x", revision) is None
    assert hub_cache.find("org/other") is None


def test_a_repository_by_path(repository: Path, tmp_path: Path) -> None:
    folder = repository / "snapshots" / COMMIT
    (tmp_path / "link").symlink_to(folder)
    for path in (folder, tmp_path / "link"):
        assert hub_cache.snapshot_at(path) == hub_cache.Snapshot("org/my.model_x", COMMIT, folder)
    main = hub_cache.snapshot_at(repository)
    assert main and main.revision == OTHER and main.folder == repository / "snapshots" / OTHER


def test_an_old_name_without_an_organisation(tmp_path: Path) -> None:
    folder = tmp_path / "models--gpt2" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    assert hub_cache.snapshot_at(folder) == hub_cache.Snapshot("gpt2", COMMIT, folder)


def test_other_folders_are_no_snapshots(tmp_path: Path) -> None:
    for name in (
        "model",
        "snapshots/x",
        "models--org--name",
        "models--org--name/snapshots",
        "a--b/snapshots/x",
    ):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        assert hub_cache.snapshot_at(tmp_path / name) is None
    (tmp_path / "models--org--name" / "refs").mkdir()
    (tmp_path / "models--org--name" / "refs" / "main").write_text("../../escape")
    assert hub_cache.snapshot_at(tmp_path / "models--org--name") is None
