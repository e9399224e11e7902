"""How a staged repository is moved into place, and that a kill at any moment leaves one that is whole."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline import store
from pipeline.ship.triton import install, repository
from pipeline.store.records import ShippedVersion, ShipRecord
from tests.interrupted import every_kill
from tests.serving import ship_record, shipped_version

MODELS = ("m", "m_generate")


def staged(root: Path, number: int) -> ShippedVersion:
    """Both models of version `number` of the model m, with files that say the number."""
    for model in MODELS:
        (root / model / str(number)).mkdir(parents=True)
        (root / model / str(number) / "file").write_text(str(number))
        (root / model / "config.pbtxt").write_text(str(number))
        (root / model / "configs").mkdir(exist_ok=True)
        (root / model / "configs" / f"v{number}.pbtxt").write_text(str(number))
    return shipped_version(root, root / "m" / str(number), root / "m_generate" / str(number))


def put(root: Path, number: int, record: ShipRecord | None = None) -> ShipRecord:
    """Installs version `number` beside those of the record."""
    staging = root / f"staging{number}"
    shutil.rmtree(staging, ignore_errors=True)
    version = staged(staging, number)
    versions = {**(record.models["m"].versions if record else {}), str(number): version}
    return install.install(staging, root / "repo", ship_record(m=versions))


def served(repo: Path) -> set[int]:
    """The versions that config.pbtxt names, after a look at what Triton and the record say of them."""
    record = repository.read(repo)
    repository.verify(repo, record)
    numbers = set()
    for model in MODELS:
        number = (repo / model / "config.pbtxt").read_text()
        assert number in record.models["m"].versions, "config.pbtxt names a version that SHIP.json lacks"
        assert (repo / model / number / "file").read_text() == number
        assert (repo / model / "configs" / f"v{number}.pbtxt").read_text() == number
        numbers.add(int(number))
    return numbers


def test_into_nothing_then_beside_a_version(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    first = put(tmp_path, 1)
    assert repository.read(repo) == first and not (tmp_path / "staging1").exists()
    assert served(repo) == {1}
    second = put(tmp_path, 2, first)
    assert repository.read(repo) == second and second.switching == () and served(repo) == {2}
    assert (repo / "m/1/file").read_text() == "1" and (repo / "m/configs/v1.pbtxt").read_text() == "1"
    assert "| `m` | 2 |" in (repo / "README.md").read_text()


@pytest.mark.slow
def test_killed_at_any_change_the_repository_is_whole(tmp_path: Path) -> None:
    """Each config.pbtxt names a whole version that SHIP.json has, and the next ship leaves nothing behind."""
    repo, states = tmp_path / "repo", set()

    def prepare() -> None:
        shutil.rmtree(repo, ignore_errors=True)
        put(tmp_path, 1)

    for left in every_kill(repo, prepare, lambda: put(tmp_path, 2, repository.read(repo))):
        numbers, switching = served(repo), repository.read(repo).switching
        states.add((tuple(sorted(numbers)), switching))
        assert switching or numbers == {1} or "2" in repository.read(repo).models["m"].versions
        put(tmp_path, 3, repository.read(repo))
        assert served(repo) == {3}, left
        assert not list(repo.rglob("*.tmp")) and repository.read(repo).switching == ()
        kept = set(repository.read(repo).models["m"].versions)
        for model in MODELS:
            assert {path.name for path in (repo / model).iterdir() if path.name.isdigit()} == kept
    assert {((1,), ()), ((1,), ("m",)), ((1, 2), ("m",)), ((2,), ("m",))} <= states, states


@pytest.mark.slow
def test_killed_before_it_is_there_a_new_repository_is_not(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    for _ in every_kill(tmp_path, lambda: shutil.rmtree(repo, ignore_errors=True), lambda: put(tmp_path, 1)):
        assert not repo.exists()
        put(tmp_path, 1)
        assert served(repo) == {1}


def test_what_a_killed_ship_left_undone_is_done(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    record = put(tmp_path, 2, put(tmp_path, 1))
    for model in MODELS:
        (repo / model / "config.pbtxt").write_text("1")
    store.write_json(repo / "SHIP.json", record.replaced(switching=("m",)).plain())
    assert install.finish(repo, repository.read(repo)) == record == repository.read(repo)
    assert served(repo) == {2}


def test_versions_that_nothing_names_are_removed(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    first = put(tmp_path, 1)
    for model in (*MODELS, "other"):
        (repo / model / "2").mkdir(parents=True)
        (repo / model / "2" / "half").touch()
    (repo / "m" / ".config.pbtxt.abc.tmp").touch()
    put(tmp_path, 2, first)
    assert not (repo / "m/2/half").exists() and not (repo / "other/2").exists()
    assert served(repo) == {2} and not list(repo.rglob("*.tmp"))
