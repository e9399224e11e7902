"""What a folder holds: its config.json, its tensors and where each lies now, by the form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.models import checkpoint_files, provenance, safetensors_index
from pipeline.models.config import Config
from pipeline.models.tensor_names import is_left_out
from pipeline.ship.hf import nemotron_nas, own_class
from pipeline.ship.hf.forms import FormVerdict
from pipeline.ship.hf.parts import WrittenTensor
from pipeline.ship.outline import Outline
from pipeline.ship.pruned import PrunedModel
from pipeline.store import records

FILES = "files"
"""In config.json, beside where it comes from: a digest of all small files, and of the form that they have."""


def given(model: PrunedModel) -> Config:
    """config.json of the whole model, as the file has it."""
    return records.read_object(model.checkpoint.folder / "config.json")


def layers(variant: Outline, verdict: FormVerdict) -> tuple[int, ...]:
    """The index in the whole model of each layer that is written."""
    return variant.kept_layers if verdict.form == "own class" else tuple(range(variant.num_layers))


def config(model: PrunedModel, variant: Outline, verdict: FormVerdict) -> dict[str, Any]:
    """config.json of the folder; its last key says what the folder is."""
    form = own_class if verdict.form == "own class" else nemotron_nas
    own = form.config(variant, given(model))
    if verdict.form == "nemotron-nas" and not {"dtype", "torch_dtype"} & set(own):
        own["torch_dtype"] = _dtype(model)
    small = [f"{file.name} {store.sha256(file)}" for file in small_files(model)]
    words = json.dumps([own, small], sort_keys=True)
    mark = {
        provenance.VARIANT: model.variant.name,
        provenance.NUM_LAYERS: model.num_layers,
        provenance.LAYERS: list(layers(variant, verdict)),
        provenance.FORM: verdict.form,
        provenance.DIGEST: model.digest("hf"),
        FILES: store.text_digest(words),
    }
    return {**own, provenance.NAME: mark}


def small_files(model: PrunedModel) -> list[Path]:
    """The source's files beside config.json and weights: tokenizer and settings."""
    files = (model.checkpoint.folder / name for name in checkpoint_files.SMALL_FILES)
    return [file for file in files if file.name != "config.json" and file.is_file()]


def _dtype(model: PrunedModel) -> str:
    """PyTorch's name of the type that the weights have: TensorRT-LLM takes no other word for it."""
    embedding = model.everything[f"{model.rules.embedding}.weight"].slice
    return str(safetensors_index.torch_dtype(embedding)).removeprefix("torch.")


def parts(model: PrunedModel, variant: Outline, verdict: FormVerdict) -> Iterator[WrittenTensor]:
    """The tensors of the folder, in the order of the source's files."""
    homes = {name: model.checkpoint.folder / one.file for name, one in model.checkpoint.tensors.items()}
    gone = nemotron_nas.without_maps(variant)
    for name, tensor in model.everything.items():
        if not is_left_out(name, model.skip, model.rules):
            new = (
                own_class.renamed(name, variant.kept_layers, model.rules)
                if verdict.form == "own class"
                else name
            )
            yield WrittenTensor(new, tensor, homes.get(name))
        elif _is_norm(name, model) and not is_left_out(name, gone, model.rules):
            # Of a sublayer that has a map, which reads its output.
            yield WrittenTensor(name, tensor, homes.get(name))
    for place in variant.maps:
        one = model.maps[place]
        yield WrittenTensor(nemotron_nas.map_name(place, model.rules.layers), nemotron_nas.matrix(one), None)


def _is_norm(name: str, model: PrunedModel) -> bool:
    """Whether a tensor is the norm before a sublayer."""
    return name.endswith(tuple(f".{model.rules.norms(kind)[0]}.weight" for kind in ("attn", "mlp")))


def remarks(model: PrunedModel, verdict: FormVerdict) -> tuple[str, ...]:
    """What a user should know of a folder beside who loads it."""
    words = []
    if given(model).get("auto_map"):
        words.append("code that lies beside the source was not copied and not run")
    if verdict.form == "nemotron-nas":
        words.append(f"{nemotron_nas.CODE} is a configuration class, no modelling code")
    if verdict.unless_forced:
        words.append(f"forced: {verdict.unless_forced}")
    return tuple(words)
