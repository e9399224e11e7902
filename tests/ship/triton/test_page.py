"""README.md of a repository, and the commands that it prints."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from pipeline.ship.triton import page
from tests.serving import ship_record, shipped_version

NEEDS = {"python": "3.11", "numpy": "1.26.4", "tokenizers": "0.22", "jinja2": "3.1", "onnxruntime": "1.24"}
PLAN = {"tokenizers": "0.22", "polygraphy": "0.49", "tensorrt-rtx": "1.3.0, exactly", "gpu": "sm80"}


def test_docker_installs_just_what_the_versions_need() -> None:
    shipped = ship_record(m={"1": shipped_version(needs=NEEDS)}, n={"1": shipped_version(needs=PLAN)})
    words = shlex.split(page.docker("'/my models'", shipped).replace("\\\n", " "))
    assert words[words.index("-v") + 1] == "/my models:/models:ro"
    script = words[-1]
    assert script.endswith("&& tritonserver --model-repository=/models")
    packages = script.removeprefix("pip install --no-cache-dir ").split(" && ")[0].split()
    assert packages == [
        "jinja2==3.1",
        "onnxruntime-gpu==1.24",
        "polygraphy==0.49",
        "tensorrt-rtx-cu13-bindings==1.3.0",
        "tensorrt-rtx-cu13-libs==1.3.0",
        "tokenizers==0.22",
    ]


def test_curl_names_the_content_type() -> None:
    """Triton 24.10 crashes on a form-encoded body above 4 MB."""
    words = shlex.split(page.curl("localhost:8000/v2/models/m_generate"))
    assert words[:3] == ["curl", "-N", "localhost:8000/v2/models/m_generate/generate_stream"]
    assert words[words.index("-H") + 1] == "Content-Type: application/json"
    assert json.loads(words[words.index("-d") + 1])["stream"] is True


def test_the_page(tmp_path: Path) -> None:
    shipped = ship_record(
        m={"2": shipped_version(needs=NEEDS)}, n={"1": shipped_version(needs=PLAN, check="not checked")}
    )
    page.write(tmp_path, shipped)
    text = (tmp_path / "README.md").read_text()
    assert "| `m` | 2 | base, fp32 | onnx graph | passed | 1,024 |" in text
    assert "| `n` | 1 | base, fp32 | onnx graph | not checked | 1,024 |" in text
    assert "whose TensorRT is that of the plans: tensorrt-rtx 1.3.0, exactly:" in text
    assert '-v "$PWD":/models:ro' in text and page.curl("localhost:8000/v2/models/m_generate") in text
    assert text.count("curl") == text.count("-H 'Content-Type: application/json'") == 2
    assert all(line in text for line in shipped.not_checked)
