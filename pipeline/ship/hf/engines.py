"""Which engines load a folder, by which command, and with which limits; from their sources."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.models.config import SLIDING
from pipeline.models.gguf import windows
from pipeline.ship.outline import Outline

_COMMANDS = {
    "transformers": 'AutoModelForCausalLM.from_pretrained("{folder}")',
    "vLLM": "vllm serve {folder}",
    "SGLang": "python -m sglang.launch_server --model-path {folder}",
    "TensorRT-LLM": "trtllm-serve {folder}",
    "mlx-lm": "mlx_lm.generate --model {folder} --prompt …",
}
_REMOTE = {
    "vLLM": " --trust-remote-code",
    "SGLang": " --trust-remote-code",
    "TensorRT-LLM": " --trust_remote_code",
    "mlx-lm": " --trust-remote-code",
}
"""What lets the configuration class of the folder run."""
_LIMITS = {
    **dict.fromkeys(("vLLM", "SGLang", "TensorRT-LLM"), "with the folder's configuration class"),
    "mlx-lm": "its tokenizer asks for the folder's configuration class",
}
_BY_INDEX = {"gemma2": ("SGLang",), "gemma3_text": ("mlx-lm",)}
"""model_type → engines that take a layer's window from its index, and pass over `layer_types`.

SGLang `srt/models/gemma2.py` (layer_id % 2), mlx-lm `models/gemma3_text.py`
(sliding_window_pattern).
"""
_PATTERNS = {"gemma2": 2, "gemma3_text": 6}


@dataclass(frozen=True, slots=True)
class Engine:
    """What one engine makes of a folder.

    Attributes:
        name: of the engine.
        loads: whether it loads it, by its source.
        limits: why it does not; else what it needs.
        command: that runs it, `{folder}` in the folder's place.
    """

    name: str
    loads: bool
    limits: str
    command: str

    def plain(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {"name": self.name, "loads": self.loads, "limits": self.limits, "command": self.command}

    def words(self) -> str:
        """'vLLM: with its configuration class', for a person."""
        return f"{self.name}{'' if not self.limits else f' ({self.limits})'}"


def of_own_class(variant: Outline) -> tuple[Engine, ...]:
    """Of a checkpoint of the model's own class with fewer layers: the engines that load the whole model."""
    model_type = variant.config["model_type"]
    by_index = () if pattern(variant) is not None else _BY_INDEX.get(model_type, ())
    engines = []
    for name, command in _COMMANDS.items():
        limits = ""
        if name in by_index:
            limits = "would take the layers' windows from their new indices"
        elif model_type == "qwen":
            limits = "needs the source's own .py files beside it, which are not copied"
        engines.append(Engine(name, name not in by_index, limits, command))
    return tuple(engines)


def pattern(variant: Outline) -> int | None:
    """n, where of the layers that are left every n-th sees everything and the others slide; None where not.

    Asked of Gemma's; 1 of others, whose layers no engine here takes for different ones by their index.
    """
    kinds, every = variant.config["layer_types"], _PATTERNS.get(variant.config["model_type"])
    left = [kinds[i] for i in variant.kept_layers]
    if every is None:
        return 1
    given = variant.config.get("sliding_window_pattern")
    # mlx-lm lets a config say the pattern; what SGLang has of Gemma 2 is fixed.
    choices = (
        (given or every, *range(1, len(left) + 1))
        if variant.config["model_type"] == "gemma3_text"
        else (every,)
    )
    for n in choices:
        if windows.slides(n, len(left)) == [kind == SLIDING for kind in left]:
            return int(n)
    return None


def of_sublayers(has_maps: bool, headless: str | None) -> tuple[Engine, ...]:
    """The engines for nemotron-nas.

    Args:
        has_maps: a matrix stands in for a sublayer.
        headless: why an engine whose residual stream begins with an attention cannot run it.
    """
    limits = {"transformers": "it has the configuration of nemotron-nas alone, no model"}
    for name in ("vLLM", "SGLang"):
        if has_maps:
            limits[name] = "it has no linear maps"
        elif headless:
            limits[name] = "no residual stream before the first attention"
    if has_maps:
        limits["mlx-lm"] = "it calls the maps' tensors otherwise than TensorRT-LLM"
    return tuple(
        Engine(
            name,
            name not in limits,
            limits.get(name, _LIMITS.get(name, "")),
            command + _REMOTE.get(name, ""),
        )
        for name, command in _COMMANDS.items()
    )
