"""README.md of a model repository: what is in it, how to start it, what was checked and what was not."""

from __future__ import annotations

from pathlib import Path
from string import Template

from pipeline import store
from pipeline.ship.triton import repository
from pipeline.store.records import ShipRecord

IMAGE = "nvcr.io/nvidia/tritonserver:<yy.mm>-py3"
PIP = {
    "onnxruntime": ("onnxruntime-gpu",),
    "tokenizers": ("tokenizers",),
    "jinja2": ("jinja2",),
    "polygraphy": ("polygraphy",),
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt-rtx-cu13-libs", "tensorrt-rtx-cu13-bindings"),
}
"""What a version needs → the packages of pip that bring it."""


def docker(mount: str, record: ShipRecord) -> str:
    """The command that starts the repository on a machine with Docker and an NVIDIA GPU.

    Args:
        mount: where the repository lies, quoted for the shell.
        record: what is in it.
    """
    packages = {
        f"{package}=={version.split(',')[0]}"
        for _, shipped in repository.newest(record).values()
        for name, version in shipped.needs.items()
        for package in PIP.get(name, ())
    }
    return (
        f"docker run --rm --gpus=all --shm-size=1g -p 8000:8000 -p 8001:8001 -p 8002:8002 \\\n"
        f"  -v {mount}:/models:ro {IMAGE} \\\n"
        f"  bash -c 'pip install --no-cache-dir {' '.join(sorted(packages))} "
        f"&& tritonserver --model-repository=/models'"
    )


def curl(url: str, with_key: bool = False) -> str:
    """The command that asks a text model at this URL for a streamed text.

    Args:
        url: of the model.
        with_key: send the key in PIPELINE_API_KEY.
    """
    body = '{"text_input": "The capital of France is", "max_tokens": 16, "stream": true}'
    key = ' -H "Authorization: Bearer $PIPELINE_API_KEY"' if with_key else ""
    # Without the content type a Triton 24.10 with no gate before it crashes on bodies above 4 MB.
    return f"curl -N {url}/generate_stream -H 'Content-Type: application/json'{key} -d '{body}'"


def write(folder: Path, record: ShipRecord) -> None:
    """Writes README.md into the repository."""
    newest = repository.newest(record)
    rows = [
        f"| `{name}` | {number} | {version.variant}, {version.precision} | {version.kind} | {version.check} "
        f"| {version.kv_bytes_per_token:,} |"
        for name, (number, version) in newest.items()
    ]
    needs = (need for _, version in newest.values() for need in version.needs.items())
    plans = sorted({f"{kind} {version}" for kind, version in needs if kind.startswith("tensorrt")})
    example = f"localhost:8000/v2/models/{next(iter(newest), 'NAME')}{repository.ENDING}"
    text = _PAGE.substitute(
        rows="\n".join(rows),
        plans=f" and whose TensorRT is that of the plans: {', '.join(plans)}" if plans else "",
        docker=docker('"$PWD"', record),
        curl=curl(example),
        example=example,
        not_checked="; ".join(record.not_checked),
    )
    with store.atomic(folder / "README.md") as temporary:
        temporary.write_text(text, encoding="utf-8")


_PAGE = Template("""# Triton model repository

Written by `pipeline ship`; SHIP.json holds the digests of every file.

| model | version | variant | artefact | check against PyTorch | KV bytes a token |
|---|---|---|---|---|---|
$rows

Each is two Triton models. `NAME` takes and gives the artefact's own tensors (a TensorRT-RTX plan has no such
model: Triton's backend cannot load it). `NAME_generate` takes text and streams text.

On a machine with an NVIDIA GPU; take an image whose Python is 3.11 or newer (24.11 and later)$plans:

```
$docker
```

On this machine, with ONNX Runtime on the CPU, or on a GPU with `--provider cuda`: `pipeline serve FOLDER`.

```
$curl
```

The content type matters: Triton 24.10 crashes on form-encoded bodies above 4 MB.

Fields, all but the first optional: `text_input` or `messages` (a chat, as a JSON text), `max_tokens` (16),
`temperature` (0 is greedy), `top_k`, `top_p`, `seed`, `repetition_penalty`, `presence_penalty`,
`frequency_penalty`, `stop_words`, `ignore_eos`, `stream`, `exclude_input_in_output` (true),
`return_finish_reason`, `return_num_input_tokens`, `return_num_output_tokens`, `logprobs` (0 to 20
alternatives of each token; the output `logprobs` is JSON), `share` (requests that name one share take turns
with all others as if they were one), `probe` (a sign of life, and nothing else), `return_error_status` (an
error begins with gRPC's status; the header triton_grpc_error kills a Triton before 26.04). `rows`,
`cache_tokens`, `queue`, `provider` (auto, cpu, cuda), `threads`, `verify` and `request_timeout` (seconds that
a request may wait and run) are parameters in `NAME_generate/config.pbtxt`.

OpenAI's API: `openai_frontend/main.py --model-repository /models --tokenizer …` in NVIDIA's image sends
`NAME_generate` these fields; on this machine `pipeline serve FOLDER --openai`.

Readiness: a Python model whose process died stays READY in Triton (server#8604), so a probe asks the model:
`curl -f $example/generate -H 'Content-Type: application/json' -d '{"probe": true}'`.

An earlier version: copy `NAME/configs/vN.pbtxt` over `NAME/config.pbtxt`, the same for `NAME_generate`, and
load again. `NAME_generate` reads the artefact in `NAME/`: keep both in one folder (a repository in cloud 
storage is fetched model by model).

Checked here: what the table says; `pipeline serve FOLDER --smoke` checks the server. **Not checked here**:
$not_checked.
""")
