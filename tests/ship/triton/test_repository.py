"""SHIP.json, and what it says of the files."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.ship.triton import install, repository
from pipeline.store.records import ShippedVersion
from pipeline.types import UserError
from tests.serving import ship_record, shipped_version


def staged(root: Path, number: int, content: str) -> ShippedVersion:
    """Both models of version `number` of the model m, with files of this content."""
    for model in ("m", "m_generate"):
        (root / model / str(number)).mkdir(parents=True)
        (root / model / str(number) / "file").write_text(content)
        (root / model / "config.pbtxt").write_text(content)
        (root / model / "configs").mkdir(exist_ok=True)
        (root / model / "configs" / f"v{number}.pbtxt").write_text(content)
    (root / "README.md").write_text(content)
    return shipped_version(root, root / "m" / str(number), root / "m_generate" / str(number))


def test_newest_counts_as_numbers_do() -> None:
    shipped = ship_record(
        m={"9": shipped_version(check="old"), "10": shipped_version()},
        rtx={"1": shipped_version(raw_model=False)},
    )
    assert {name: number for name, (number, _) in repository.newest(shipped).items()} == {"m": 10, "rtx": 1}
    assert repository.newest(shipped)["m"][1].check == "passed"


@pytest.mark.parametrize("change", ["edited", "longer", "missing"])
def test_a_changed_file_is_refused(tmp_path: Path, change: str) -> None:
    repo = tmp_path / "repo"
    install.install(tmp_path / "one", repo, ship_record(m={"1": staged(tmp_path / "one", 1, "one")}))
    file = repo / "m_generate/1/file"
    if change == "missing":
        file.unlink()
    else:
        file.write_text({"edited": "eno", "longer": "one more"}[change])
    with pytest.raises(UserError, match=r"m_generate/1/file is not what was shipped"):
        repository.verify(repo, repository.read(repo))


def test_config_pbtxt_is_the_users(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    install.install(tmp_path / "one", repo, ship_record(m={"1": staged(tmp_path / "one", 1, "one")}))
    (repo / "m_generate/config.pbtxt").write_text("edited")
    repository.verify(repo, repository.read(repo))


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no SHIP\.json; make the repository with .* '/.*/a b'`"):
        repository.read(tmp_path / "a b")
    (tmp_path / "full").mkdir()
    assert repository.read_or_new(tmp_path / "full").models == {}
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="ship into an empty or a new folder"):
        repository.read_or_new(tmp_path / "full")
    with pytest.raises(UserError, match="ship into an empty or a new folder"):
        repository.read_or_new(tmp_path / "full" / "file")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"what": "bench"}', '{"format": 2}'])
def test_another_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "SHIP.json").write_text(text)
    with pytest.raises(UserError, match="was not written by this version of `pipeline ship`"):
        repository.read(tmp_path)
