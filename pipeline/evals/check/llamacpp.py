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
from typing import Any

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

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        """The tokens that follow these, the most probable each time; fewer than `count` where a text ends."""
        request = {
            "prompt": [int(i) for i in ids],
            "n_predict": count,
            "n_probs": 1,
            "temperature": 0.0,
            "cache_prompt": False,
        }
        answer = self.server.handle_completions(request)
        return [int(entry["id"]) for entry in answer["choices"][0]["logprobs"]["content"]]


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
    question = {"prompts": prompts, "words": words, "best": best}
    answer = _asked(file, context, question)
    return list(np.frombuffer(answer, np.float64).reshape(len(prompts), words))


def continuation(file: Path, prompt: Sequence[int], count: int, context: int) -> list[int]:
    """The greedy tokens after a prompt, computed in a process of its own.

    Args:
        file: a GGUF; of a split model the first part.
        prompt: tokens.
        count: of tokens at most.
        context: tokens.

    Raises:
        UserError: llama.cpp cannot run the file.
    """
    tokens: list[int] = np.frombuffer(
        _asked(file, context, {"greedy": prompt, "count": count}), np.int64
    ).tolist()
    return tokens


def _asked(file: Path, context: int, question: dict[str, Any]) -> bytes:
    """What a child process answers."""
    whole = {"file": str(file), "context": context, **question}
    command = [sys.executable, "-m", __name__]
    quiet = {**os.environ, "GGML_NO_BACKTRACE": "1"}  # else a debugger's words follow its own
    child = subprocess.run(
        command, input=json.dumps(whole).encode(), capture_output=True, check=False, env=quiet
    )
    if child.returncode:
        reason = first_line(child.stderr.decode(errors="replace").strip().rpartition("\n")[2])
        raise UserError(f"llama.cpp cannot run {file} ({reason or child.returncode})")
    return child.stdout


def _main() -> None:
    """Answers the question on stdin by float64 on stdout, or by the int64 of greedy tokens."""
    question = json.load(sys.stdin)
    answer = os.dup(1)
    os.dup2(2, 1)  # llama.cpp may write to stdout too
    server = LlamaCpp(Path(question["file"]), question["context"])
    if "greedy" in question:
        numbers = np.array(server.greedy(question["greedy"], question["count"]), np.int64)
    else:
        words, best = question["words"], question["best"]
        numbers = np.stack([server.log_probabilities(one, words, best) for one in question["prompts"]])
    with os.fdopen(answer, "wb") as out:
        out.write(numbers.tobytes())
    os._exit(0)  # the server's threads need not be waited for


if __name__ == "__main__":
    _main()
