"""Files made to exhaust memory: each is refused in one line, before anything grows with what it claims.

The peak is of a process of its own. Times are printed, not held: other processes share the CPU.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import tiny

LIMIT_MB = 500
EXPORTS = """
import json, sys, time
from pathlib import Path
from pipeline.cli.commands import app
from pipeline.types import UserError
def peak():  # of this program alone: getrusage would count what the parent had before exec
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024
for folder in sys.argv[1:]:
    began, error = time.perf_counter(), None
    try:
        app(["export", folder], standalone_mode=False)
    except UserError as refusal:
        error = str(refusal)
    print(json.dumps({"folder": folder, "error": error, "s": time.perf_counter() - began, "mb": peak()}))
"""
"""Exports folders one after the other: the peak is that of the worst."""


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    """What a header says of one tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def with_header(text: str | bytes, data: int = 0, length: int | None = None) -> Callable[[Path], None]:
    """Writes model.safetensors.

    Args:
        text: its header.
        data: bytes behind the header, all holes.
        length: what it says of the header's length.
    """
    raw = text.encode() if isinstance(text, str) else text

    def write(folder: Path) -> None:
        with (folder / "model.safetensors").open("wb") as file:
            file.write((len(raw) if length is None else length).to_bytes(8, "little") + raw)
            file.truncate(8 + len(raw) + data)

    return write


def with_config(**changes: object) -> Callable[[Path], None]:
    """Changes keys of config.json."""

    def write(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return write


def with_text(name: str, text: str) -> Callable[[Path], None]:
    """Writes a file beside the weights."""

    def write(folder: Path) -> None:
        (folder / name).write_text(text)

    return write


def many(count: int) -> str:
    """A header of so many empty tensors."""
    empty = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return "{" + ",".join(f'"{k:x}":{empty}' for k in range(count)) + "}"


STRINGS = '{"a":{"dtype":"F32","shape":[1],"data_offsets":["0","4"]}}'
BOOLEANS = '{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}'
TWICE = '{"a":' + json.dumps(entry([1], 0, 4)) + ',"a":' + json.dumps(entry([1], 4, 8)) + "}"
CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a billion layers": (with_config(num_hidden_layers=10**9), "num_hidden_layers is 1000000000"),
    "more layers than there are": (with_config(num_hidden_layers=1000), "the checkpoint lacks 998 of them"),
    "fewer layers than there are": (with_config(num_hidden_layers=1), "hold 1 layers more (layer 1)"),
    "two billion rows": (with_config(vocab_size=2**31 - 1), "vocab_size 2147483647, but no tensor has"),
    "a head of two billion": (with_config(head_dim=2**31 - 2), "head_dim 2147483646, but no tensor has"),
    "one row more": (with_config(vocab_size=97), "is [96, 64], but config.json implies [97"),
    "one row less": (with_config(vocab_size=95), "is [96, 64], but config.json implies [95"),
    "a million empty tensors": (with_header(many(10**6)), "is the most that is read here"),
    "170,000 tensors": (with_header(many(170_000)), "holds more than 50000 tensors"),
    "a header of 100 MB": (with_header(b"", 100_000_000, 100_000_000), "is the most that is read here"),
    "a header of 2^63 bytes": (with_header(b"{}", 8, 2**63), "truncated or no safetensors file"),
    "a million dicts": (with_header("[" + "{}," * 3_000_000 + "{}]"), "malformed"),
    "nested lists": (with_header("[" * 4_000_000), "malformed"),
    "nested objects": (with_header('{"a":' * 1_500_000), "malformed"),
    "a product of 2^496": (with_header(json.dumps({"a": entry([2**62] * 8, 0, 4)}), 4), "the header lies"),
    "an integer of 5000 digits": (with_header('{"a":' + "9" * 5000 + "}"), "malformed"),
    "a rank of 100000": (with_header(json.dumps({"a": entry([1] * 100_000, 0, 4)}), 4), "malformed"),
    "a key twice": (with_header(TWICE, 8), "'a' stands there twice"),
    "negative offsets": (with_header(json.dumps({"a": entry([1], -4, 0)}), 4), "the header lies"),
    "a negative shape": (with_header(json.dumps({"a": entry([-1, -1], 0, 4)}), 4), "the header lies"),
    "offsets of strings": (with_header(STRINGS, 4), "malformed"),
    "a shape of booleans": (with_header(BOOLEANS, 4), "malformed"),
    "a config of nested lists": (with_text("config.json", "[" * 1_000_000), "config.json"),
}  # fmt: skip


def index_alone(folder: Path) -> None:
    """An index that is no JSON, and no other weights."""
    (folder / "model.safetensors").unlink()
    with_text("model.safetensors.index.json", "[" * 1_000_000)(folder)


CASES["an index of nested lists"] = index_alone, "model.safetensors.index.json"


def test_refused_in_one_line_and_little_memory(workdir: Path) -> None:
    folders = {str(Path("models", f"hostile-{k}")): case for k, case in enumerate(CASES)}
    source = tiny.checkpoint(workdir / "source")
    for folder, case in folders.items():
        shutil.copytree(source, folder)
        CASES[case][0](Path(folder))
    line = [sys.executable, "-c", EXPORTS, *folders]
    done = subprocess.run(
        line, env=tiny.environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = [json.loads(text) for text in done.stdout.splitlines()]
    assert [result["folder"] for result in results] == list(folders)
    for result in results:
        case, error = folders[result["folder"]], result["error"]
        print(f"{case}: {result['s']:.2f} s, {result['mb']:.0f} MB: {error}")
        assert error and CASES[case][1] in error, (case, error)
        assert "\n" not in error and len(error) < 700, case
        assert result["mb"] < LIMIT_MB, case
    assert not list(Path("graphs").glob("*/*"))
