"""What a model's weights are: digests of content, each taken once, and noticed changes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import store
from pipeline.store import files, weights
from pipeline.store.records import FileState
from pipeline.types import UserError

KILO = weights.SAMPLE


def safetensors(path: Path, sizes: dict[str, int], fill: int = 1, size: int | None = None) -> Path:
    """A safetensors file of bytes; `size` makes it longer, by a hole that no tensor covers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    begin, entries = 0, {}
    for name, length in sizes.items():
        entries[name] = {"dtype": "U8", "shape": [length], "data_offsets": [begin, begin + length]}
        begin += length
    header = json.dumps(entries).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes([fill]) * begin)
    if size is not None:
        os.truncate(path, size)
    return path


def change(path: Path, offset: int, keep_date: bool = True) -> None:
    """Flips a byte in place and puts the date of the content back."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(offset, os.SEEK_END if offset < 0 else os.SEEK_SET)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 255]))
    if keep_date:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read whole, one entry a read."""
    names: list[str] = []
    digest = hashlib.file_digest

    def count(file: object, name: str) -> object:
        names.append(Path(file.name).name)  # type: ignore[attr-defined]
        return digest(file, name)  # type: ignore[arg-type]

    monkeypatch.setattr(hashlib, "file_digest", count)
    return names


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples files of any size, as large ones are."""
    monkeypatch.setattr(weights, "WHOLE", 0)


@pytest.fixture
def next_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Forgets what this process knows of files."""

    def forget() -> None:
        weights._states.clear()
        files._sums.clear()

    return forget


def test_a_content_is_read_once_a_process(tmp_path: Path, reads: list[str]) -> None:
    path = safetensors(tmp_path / "a.safetensors", {"a": 5000})
    digests = {
        store.sha256(path),
        store.sha256(path),
        weights.state(path).sha256,
        weights.state(path, True).sha256,
    }
    assert digests == {hashlib.sha256(path.read_bytes()).hexdigest()} and reads == ["a.safetensors"]
    change(path, -1)
    assert store.sha256(path) not in digests and reads == ["a.safetensors"] * 2
    shutil.copy(path, tmp_path / "b")
    path.unlink()
    (tmp_path / "b").rename(path)  # another file of the same name, size and content
    store.sha256(path)
    assert len(reads) == 3


@pytest.mark.parametrize("turn", range(5))
def test_a_change_within_the_clocks_step_is_seen(tmp_path: Path, turn: int) -> None:
    """The kernel dates files by a clock of several milliseconds; git calls such files racy."""
    path = tmp_path / "a"
    path.write_bytes(b"one")
    before = store.sha256(path)
    path.write_bytes(b"two")
    assert store.sha256(path) == hashlib.sha256(b"two").hexdigest() != before


def test_a_fresh_read_believes_no_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that loses bits changes no date: what is shipped is read whatever is known."""
    path = tmp_path / "a"
    path.write_bytes(b"one")
    old, known = files.stamp(path), store.sha256(path)
    path.write_bytes(b"two")
    monkeypatch.setattr(files, "stamp", lambda _: old)
    assert store.sha256(path) == known
    assert store.sha256(path, fresh=True) == hashlib.sha256(b"two").hexdigest()


@pytest.mark.usefixtures("sampled")
@pytest.mark.parametrize("place", ["header", "first", "middle", "last", "small"])
def test_a_sample_sees_each_end_and_the_middle_of_every_tensor(tmp_path: Path, place: str) -> None:
    path = safetensors(tmp_path / "a.safetensors", {"a": 9 * KILO, "s": 700, "b": 40 * KILO})
    data = path.stat().st_size - (9 * KILO + 700 + 40 * KILO)
    before = weights.state(path)
    assert before.sha256 is None
    begin_b = data + 9 * KILO + 700
    offsets = {
        "header": 12,
        "first": begin_b,
        "middle": begin_b + 20 * KILO,
        "last": -1,
        "small": data + 9 * KILO + 350,
    }
    if place == "header":
        safetensors(path, {"x": 9 * KILO, "s": 700, "b": 40 * KILO})
    else:
        change(path, offsets[place])
    after = weights.state(path)
    assert after.sample != before.sample and not weights.is_same(before, path)
    assert weights.identity([after]) != weights.identity([before])


@pytest.mark.usefixtures("sampled")
def test_a_change_between_the_samples_is_seen_by_who_knows_all_bytes(tmp_path: Path) -> None:
    path = safetensors(tmp_path / "a.safetensors", {"a": 90 * KILO})
    sampled, whole = weights.state(path), weights.state(path, full=True)
    assert sampled.sha256 is None and whole.sha256 == store.sha256(path) and whole.sample == sampled.sample
    contents = weights.contents([path])
    change(path, -10 * KILO)
    assert weights.is_same(sampled, path) and not weights.is_same(whole, path)
    assert weights.contents([path]) != contents
    change(path, -10 * KILO)
    assert weights.is_same(whole, path) and weights.contents([path]) == contents


def test_small_files_are_read_whole(tmp_path: Path) -> None:
    path = safetensors(tmp_path / "a.safetensors", {"a": 90 * KILO})
    before = weights.state(path)
    change(path, -10 * KILO)
    assert before.sha256 == before.sample and not weights.is_same(before, path)


def test_an_unchanged_file_is_not_read_again(tmp_path: Path, reads: list[str]) -> None:
    path = safetensors(tmp_path / "a.safetensors", {"a": 9 * KILO})
    known = weights.state(path)
    assert all(weights.is_same(known, path) for _ in range(3)) and reads == ["a.safetensors"]
    os.utime(path)  # another date: the digest is taken anew, and is the same
    assert weights.is_same(known, path) and len(reads) == 2
    path.write_bytes(path.read_bytes() + b"x")
    assert not weights.is_same(known, path) and len(reads) == 2  # another size needs no digest
    path.unlink()
    assert not weights.is_same(known, path) and weights.changed([known], tmp_path) is None


def test_digests_outlive_the_process_in_a_models_folder(
    tmp_path: Path, reads: list[str], next_process: Callable[[], None]
) -> None:
    path = safetensors(tmp_path / "a.safetensors", {"a": 9 * KILO})
    weights.state(path, full=True)
    assert not (tmp_path / weights.RECORD).exists()  # a folder of others stays as it is
    (tmp_path / "base.fp32.onnx").touch()
    next_process()
    known = weights.state(path, full=True)
    next_process()
    assert weights.state(path, full=True) == known and len(reads) == 2
    for damage in ("{", json.dumps({"what": "weights", "files": [{}]})):
        (tmp_path / weights.RECORD).write_text(damage)
        next_process()
        assert weights.state(path, full=True) == known
    shutil.copytree(tmp_path, tmp_path / "copy")  # the record's inodes are not those of the copies
    change(tmp_path / "copy" / path.name, -1)
    next_process()
    assert weights.state(tmp_path / "copy" / path.name) != known


def test_a_folder_that_may_only_be_read_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, data: object) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(weights, "write_json", refuse)
    (tmp_path / "source.json").touch()
    assert weights.state(safetensors(tmp_path / "a.safetensors", {"a": 10})).bytes > 10


def test_an_identity_is_that_of_the_files_wherever_they_lie(tmp_path: Path) -> None:
    one = safetensors(tmp_path / "one" / "a.safetensors", {"a": 10})
    two = safetensors(tmp_path / "two" / "a.safetensors", {"a": 10})
    other = safetensors(tmp_path / "other" / "a.safetensors", {"a": 10}, fill=2)
    identities = [weights.identity([weights.state(path)]) for path in (one, two, other)]
    assert identities[0] == identities[1] != identities[2] and all(map(weights.is_content, identities))
    assert not weights.is_content("0" * 64) and not weights.is_content({"model.onnx_data": 5})


@pytest.mark.usefixtures("sampled")
@pytest.mark.parametrize(
    "content", [b"x", b"\xff" * 9, (3).to_bytes(8, "little") + b"[1]", (4).to_bytes(8, "little") + b"nope"]
)
def test_what_is_no_safetensors_file_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.safetensors"):
        weights.state(path)
    with pytest.raises(UserError, match="cannot be read"):
        weights.state(tmp_path / "none.safetensors")


def test_data_that_is_no_safetensors_file_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "WHOLE", 0)
    path = tmp_path / "model.onnx_data"
    path.write_bytes(bytes(90_000))
    known = weights.state(path)
    assert known.sha256 == store.sha256(path)
    change(path, 45_000)
    assert not weights.is_same(known, path)


def test_137_gigabytes_are_told_apart_in_a_second(tmp_path: Path) -> None:
    """70B shapes: 15 files of holes, 48 tensors each."""
    size = 137 * 2**30 // 15
    sizes = {f"t{i}": size // 48 for i in range(48)}
    paths = []
    for shard in range(15):
        begin, entries = 0, {}
        for name, length in sizes.items():
            entries[name] = {"dtype": "U8", "shape": [length], "data_offsets": [begin, begin + length]}
            begin += length
        header = json.dumps(entries).encode()
        paths.append(tmp_path / f"model-{shard}.safetensors")
        paths[-1].write_bytes(len(header).to_bytes(8, "little") + header)
        os.truncate(paths[-1], 8 + len(header) + begin)
    start = time.perf_counter()
    before = weights.states(paths)
    assert time.perf_counter() - start < 2 and all(state.sha256 is None for state in before)
    with paths[7].open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\1")
    assert weights.changed(before, tmp_path) == paths[7]
    assert weights.identity(weights.states(paths)) != weights.identity(before)


def test_a_file_that_is_written_to_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    digest = hashlib.file_digest

    def written_to(file: object, name: str) -> object:
        path.write_bytes(b"more")
        return digest(file, name)  # type: ignore[arg-type]

    monkeypatch.setattr(hashlib, "file_digest", written_to)
    with pytest.raises(UserError, match="was written to while it was read"):
        store.sha256(path)


def test_a_state_is_a_record(tmp_path: Path) -> None:
    state = weights.state(safetensors(tmp_path / "a.safetensors", {"a": 10}))
    assert FileState.model_validate_json(json.dumps(state.plain())) == state


def test_a_state_that_is_older_than_the_models_folder_is_kept_there(tmp_path: Path, reads: list[str]) -> None:
    """A copy is judged before source.json says that it is a model's: its digest is kept afterwards."""
    file = safetensors(tmp_path / "m" / "model.safetensors", {"a": KILO})
    known = weights.state(file, full=True)
    assert not (tmp_path / "m" / weights.RECORD).exists()
    (tmp_path / "m" / store.SOURCE).write_text("{}")
    assert weights.state(file, full=True) == known
    weights._states.clear()  # as in a new process
    files._sums.clear()
    reads.clear()
    assert weights.state(file, full=True) == known and not reads
