"""README.md of a model repository: what is in it, how to start it, what was checked and what was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.ship.triton import repository

IMAGE = "nvcr.io/nvidia/tritonserver:<yy.mm>-py3"


def docker(mount: str, manifest: dict[str, Any]) -> str:
    """The command that starts the repository, which lies at `mount`, on a machine with Docker and an NVIDIA GPU."""
    packages = set()
    for _, told in repository.newest(manifest).values():
        for name, version in told["needs"].items():
            if name == "onnxruntime":
                packages.add(f"onnxruntime-gpu=={version}")
            elif name in ("tokenizers", "jinja2", "polygraphy"):
                packages.add(f"{name}=={version}")
            elif name == "tensorrt":
                packages.add(f"tensorrt=={version.split(',')[0]}")
            elif name == "tensorrt-rtx":
                packages |= {
                    f"tensorrt-rtx-cu13-{part}=={version.split(',')[0]}" for part in ("libs", "bindings")
                }
    return (
        f"docker run --rm --gpus=all --shm-size=1g -p 8000:8000 -p 8001:8001 -p 8002:8002 \\\n"
        f"  -v {mount}:/models:ro {IMAGE} \\\n"
        f"  bash -c 'pip install --no-cache-dir {' '.join(sorted(packages))} && tritonserver --model-repository=/models'"
    )


def write(staging: Path, manifest: dict[str, Any]) -> None:
    """Writes README.md into the repository."""
    newest = repository.newest(manifest)
    rows = [
        f"| `{name}` | {version} | {told['variant']}, {told['precision']} | {told['kind']} | {told['check']} "
        f"| {told['kv_bytes_per_token']:,} |"
        for name, (version, told) in newest.items()
    ]
    needs = (needed for _, told in newest.values() for needed in told["needs"].items())
    plans = sorted({f"{kind} {version}" for kind, version in needs if kind.startswith("tensorrt")})
    text = _PAGE.replace("ROWS", "\n".join(rows)).replace("NAME_OF_ONE", next(iter(newest), "NAME"))
    text = text.replace("DOCKER", docker("$PWD", manifest)).replace(
        "NOT_CHECKED", "; ".join(manifest["not_checked"])
    )
    text = text.replace(
        "PLANS", f" and whose TensorRT is that of the plans: {', '.join(plans)}" if plans else ""
    )
    (staging / "README.md").write_text(text)


_PAGE = """# Triton model repository

Written by `pipeline ship`; SHIP.json holds the digests of every file.

| model | version | variant | artefact | check against PyTorch | KV bytes a token |
|---|---|---|---|---|---|
ROWS

Each is two Triton models: `NAME` takes and gives the artefact's own tensors (a TensorRT-RTX plan has none: Triton's
backend cannot load it), `NAME_generate` takes text and streams text.

On a machine with an NVIDIA GPU; take an image whose Python is 3.11 or newer (24.11 and later)PLANS:

```
DOCKER
```

On this machine, with ONNX Runtime on the CPU: `pipeline serve FOLDER`.

```
curl -N localhost:8000/v2/models/NAME_OF_ONE_generate/generate_stream \\
  -d '{"text_input": "The capital of France is", "max_tokens": 16, "stream": true}'
```

Fields, all but the first optional: `text_input` or `messages` (a chat, as a JSON text), `max_tokens` (16), `temperature`
(0 is greedy), `top_k`, `top_p`, `seed`, `repetition_penalty`, `presence_penalty`, `frequency_penalty`, `stop_words`,
`ignore_eos`, `stream`, `exclude_input_in_output` (true), `return_finish_reason`, `return_num_input_tokens`,
`return_num_output_tokens`. `rows`, `cache_tokens`, `queue`, `provider` (auto, cpu, cuda), `threads` and `verify` are
parameters in `NAME_generate/config.pbtxt`.

OpenAI's API: `openai_frontend/main.py --model-repository /models --tokenizer …` in NVIDIA's image sends `NAME_generate`
these fields; on this machine `pipeline serve FOLDER --openai`.

Readiness: a Python model whose process died stays READY in Triton (server#8604), so a probe must ask for a token:
`curl -f localhost:8000/v2/models/NAME_OF_ONE_generate/generate -d '{"text_input": "a", "max_tokens": 1}'`.

An earlier version: copy `NAME/configs/vN.pbtxt` over `NAME/config.pbtxt`, the same for `NAME_generate`, and load again.
`NAME_generate` reads the artefact in `NAME/`: keep both in one folder (a repository in cloud storage is fetched model by model).

Checked here: what the table says; `pipeline serve FOLDER --smoke` checks the server. **Not checked here**: NOT_CHECKED.
"""
