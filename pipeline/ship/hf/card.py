"""README.md of a folder: what it is, how it was made, and who loads it."""

from __future__ import annotations

from pipeline.ship.hf.engines import Engine
from pipeline.ship.hf.forms import FormVerdict
from pipeline.ship.outline import Outline
from pipeline.ship.pruned import PrunedModel
from pipeline.types import format_layers

_CODE = """
`configuration_decilm.py` is a configuration class and holds no modelling code. vLLM, SGLang and
TensorRT-LLM need it to read `block_configs`; mlx-lm reads config.json itself.
"""


def text(model: PrunedModel, variant: Outline, verdict: FormVerdict, check: str) -> str:
    """The page.

    Args:
        model: the variant.
        variant: its outline.
        verdict: its form, and who loads it.
        check: 'passed' or 'not checked'.
    """
    source = model.checkpoint.source
    origin = source.origin + (f" at revision {source.revision}" if source.revision else "")
    base = f"base_model: {source.origin}\n" if source.kind == "hub" else ""
    loads = "\n".join(map(_row, verdict.engines))
    code = _CODE if verdict.form == "nemotron-nas" else ""
    remote = (
        "\nCode that lay beside the source was not copied and not run.\n"
        if model.config.get("auto_map")
        else ""
    )
    return f"""---
library_name: transformers
{base}---
# {model.variant.model}, {model.variant.name}

A depth-pruned model: {_left_out(model)}. Written by `pipeline ship --to hf`.

- Source: {source.kind} {origin}
- Form: {_form(variant, verdict)}
- Check of the variant's graph against PyTorch: {check}
- `skip_pipeline` in config.json has the index in the source of every layer.

| engine | loads it | command |
|---|---|---|
{loads}
{code}{remote}"""


def _left_out(model: PrunedModel) -> str:
    """'attention of layers 3, 5-7 is left out', of the source's layers."""
    parts = [
        f"{what} of layers {format_layers(layers).replace('_', ', ')}"
        for what, layers in (("attention", model.skip.attention), ("MLP", model.skip.mlp))
        if layers
    ]
    if not parts:
        return f"nothing of {model.num_layers} layers is left out"
    healed = ", and weights that stay were changed to make up for it" if model.replaced else ""
    return f"{' and '.join(parts)} (of {model.num_layers}) left out{healed}"


def _form(variant: Outline, verdict: FormVerdict) -> str:
    if verdict.form == "own class":
        kind, left = variant.config["model_type"], len(variant.kept_layers)
        return f"`{kind}` with {left} layers of {variant.num_layers}, counted anew"
    return "`nemotron-nas` (DeciLMForCausalLM); `block_configs` says what each layer has"


def _row(engine: Engine) -> str:
    loads = ("yes" if engine.loads else "no") + (engine.limits and f": {engine.limits}")
    return f"| {engine.name} | {loads} | `{engine.command.format(folder='.')}` |"
