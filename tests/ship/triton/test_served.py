"""What a repository serves: what each config.pbtxt says, not what is the newest."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.ship.triton import served
from pipeline.store.records import ShipRecord
from pipeline.types import UserError
from tests.serving import ship_record, shipped_version

RECORD = ship_record(
    m={"9": shipped_version(check="old"), "10": shipped_version(check="new")},
    rtx={"1": shipped_version(raw_model=False)},
)


def policy(*versions: int) -> str:
    """A config.pbtxt that serves these."""
    return f"version_policy {{ specific {{ versions: {list(versions)} }} }}"


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A repository's configs, as `ship` leaves them."""
    for model, number in (("m", 10), ("m_generate", 10), ("rtx_generate", 1)):
        (tmp_path / model).mkdir()
        (tmp_path / model / "config.pbtxt").write_text(policy(number))
    return tmp_path


def numbers(repo: Path, record: ShipRecord = RECORD) -> dict[str, int]:
    """Model → the version that it serves."""
    return {model.name: model.number for model in served.models(repo, record)}


def test_the_newest_is_served_until_a_config_names_another(repo: Path) -> None:
    assert numbers(repo) == {"m": 10, "m_generate": 10, "rtx_generate": 1}
    (repo / "m_generate/config.pbtxt").write_text(policy(9))
    assert numbers(repo) == {"m": 10, "m_generate": 9, "rtx_generate": 1}
    (repo / "m/config.pbtxt").write_text(policy(9))
    models = served.models(repo, RECORD)
    assert [model.version.check for model in models] == ["old", "old", "passed"]
    assert [model.is_text for model in models] == [False, True, True]


@pytest.mark.parametrize("text", [policy(9, 10), "", "version_policy { latest { num_versions: 1 } }"])
def test_of_several_versions_triton_gives_the_highest(repo: Path, text: str) -> None:
    (repo / "m/config.pbtxt").write_text(text)
    assert numbers(repo)["m"] == 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (policy(11), r"serves version 11, and SHIP\.json has none"),
        ("edited", "is no config of Triton's"),
        (None, "is no config"),
    ],
)
def test_what_was_not_shipped_is_refused(repo: Path, text: str | None, message: str) -> None:
    file = repo / "m/config.pbtxt"
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        served.models(repo, RECORD)
    assert str(caught.value).endswith(f"copy {repo}/m/configs/v10.pbtxt over it")


def test_a_version_without_its_own_tensors_has_no_such_model(repo: Path) -> None:
    record = ship_record(m={"9": shipped_version(), "10": shipped_version(raw_model=False)})
    assert numbers(repo, record) == {"m_generate": 10}
    (repo / "m_generate/config.pbtxt").write_text(policy(9))
    with pytest.raises(UserError, match=r"m/config\.pbtxt serves version 10"):
        served.models(repo, record)
