from __future__ import annotations

import os
from pathlib import Path

from pipeline.evals.score import kept_files

DAY = kept_files.SPARED


def aged(folder: Path, name: str, size: int, age: float) -> Path:
    file = folder / name
    file.write_bytes(b"x" * size)
    time = file.stat().st_mtime - age
    os.utime(file, (time, time))
    return file


def test_those_used_longest_ago_go_first_and_recent_ones_stay(tmp_path: Path) -> None:
    files = [aged(tmp_path, f"{k}.npz", 100, age * DAY) for k, age in enumerate((9, 3, 5, 0.5, 0))]
    other = aged(tmp_path, "note.txt", 1000, 99 * DAY)
    kept_files.sweep(tmp_path, "*.npz", most=350)
    assert [file.exists() for file in files] == [False, True, False, True, True] and other.exists()
    kept_files.sweep(tmp_path, "*.npz", most=0)
    assert [file.exists() for file in files] == [False, False, False, True, True]


def test_a_file_that_is_used_is_young_again(tmp_path: Path) -> None:
    old, older = aged(tmp_path, "a.npz", 100, 3 * DAY), aged(tmp_path, "b.npz", 100, 9 * DAY)
    kept_files.used(older)
    kept_files.used(tmp_path / "none.npz")
    kept_files.sweep(tmp_path, "*.npz", most=100)
    assert older.exists() and not old.exists()


def test_few_files_stay(tmp_path: Path) -> None:
    file = aged(tmp_path, "a.npz", 100, 99 * DAY)
    kept_files.sweep(tmp_path, "*.npz")
    kept_files.sweep(tmp_path / "nowhere", "*.npz")
    assert file.exists()
