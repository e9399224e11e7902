"""llama.cpp itself on a GGUF file, through xllamacpp; in a process of its own, which it may end.

Legend: V vocabulary.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.models.gguf import parts
from pipeline.runtime.runner import Array
from pipeline.types import UserError, first_line


class LlamaCpp:
    """llama.cpp with one model, through xllamacpp.

    Args:
        file: a GGUF; of a split model the first part.
        context: tokens.
    """

    def __init__(self, file: Path, context: int = 512) -> None:
        import xllamacpp

        settings = xllamacpp.CommonParams()
        settings.model.path = str(file)
        settings.n_ctx, settings.n_parallel, settings.warmup, settings.verbosity = context, 1, False, -1
        settings.fit_params = False  # it would choose another context
        settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        self.server = xllamacpp.Server(settings)
        tokens = parts.read(file).fields["tokenizer.ggml.tokens"]
        self.steady = next(i for i, token in enumerate(tokens) if re.fullmatch("[a-z]+", token))

    def log_probabilities(self, ids: Sequence[int], words: int, best: int | None = None) -> Array:
        """[V]: of the token after these; NaN where llama.cpp gives none.

        Args:
            ids: tokens.
            words: V.
            best: so many of the most probable alone; None for all.
        """
        answer = self.server.handle_completions(
            {
                "prompt": [int(i) for i in ids],
                "n_predict": 1,
                "n_probs": best or words,
                "temperature": 0.0,
                "cache_prompt": best is not None,  # many beginnings of one text, perhaps
                # An end token or half a character would end the answer before its probabilities are given.
                # They are those of the logits, before the bias.
                "logit_bias": [[self.steady, 1e6]],
            }
        )
        logs = np.full(words, np.nan)
        for entry in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            logs[entry["id"]] = entry["logprob"]
        return logs


def answers(
    file: Path, prompts: Sequence[Sequence[int]], words: int, context: int, best: int | None = None
) -> list[Array]:
    """[V] for each prompt: the log-probabilities of the token after it, computed in a process of its own.

    Args:
        file: a GGUF; of a split model the first part.
        prompts: tokens.
        words: V.
        context: tokens.
        best: so many of the most probable tokens alone, the others NaN; None for all.

    Raises:
        UserError: llama.cpp cannot run the file.
    """
    question = {"file": str(file), "prompts": prompts, "words": words, "context": context, "best": best}
    command = [sys.executable, "-m", __name__]
    quiet = {**os.environ, "GGML_NO_BACKTRACE": "1"}  # else a debugger's words follow its own
    child = subprocess.run(
        command, input=json.dumps(question).encode(), capture_output=True, check=False, env=quiet
    )
    if child.returncode:
        reason = first_line(child.stderr.decode(errors="replace").strip().rpartition("\n")[2])
        raise UserError(f"llama.cpp cannot run {file} ({reason or child.returncode})")
    return list(np.frombuffer(child.stdout, np.float64).reshape(len(prompts), words))


def _main() -> None:
    """Answers the question on stdin by float64 on stdout."""
    question = json.load(sys.stdin)
    answer = os.dup(1)
    os.dup2(2, 1)  # llama.cpp may write to stdout too
    server = LlamaCpp(Path(question["file"]), question["context"])
    words, best = question["words"], question["best"]
    logs = [server.log_probabilities(prompt, words, best) for prompt in question["prompts"]]
    with os.fdopen(answer, "wb") as out:
        out.write(np.stack(logs).tobytes())
    os._exit(0)  # the server's threads need not be waited for


if __name__ == "__main__":
    _main()
