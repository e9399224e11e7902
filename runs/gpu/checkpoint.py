"""usage: python -m runs.gpu.checkpoint SHAPE FOLDER [DEVICE]: random weights, and a tokenizer.

It is made here, without a network: weights are drawn, and the tokenizer is trained on the English that every
CPython carries. The index is written last; where it is there, the checkpoint is whole and is not made again.

Legend: C hidden size, F intermediate size, V vocabulary, L layers.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from pipeline import store
from pipeline.types import UserError
from runs.gpu import shapes
from runs.gpu.shapes import ModelShape

INDEX = "model.safetensors.index.json"
WORDS = 4000
"""Of the tokenizer, at most; the rest of the vocabulary is named, and never comes of a text."""
LAYERS_A_FILE = 8


def write(shape: ModelShape, folder: Path, device: str = "cpu") -> None:
    """Writes config.json, tokenizer.json and the weights in float16.

    Args:
        shape: the sizes.
        folder: where to; it is made.
        device: of PyTorch, that draws the numbers.

    Raises:
        UserError: there is no room for it.
    """
    if _is_whole(shape, folder):
        return
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = 2 * shape.parameters, shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"{folder} has {free / 1e9:.1f} GB free, and the weights need {needed / 1e9:.1f}")
    store.write_json(folder / "config.json", shape.config)
    write_tokenizer(folder, shape.vocabulary)
    _write_weights(shape, folder, device)


def _is_whole(shape: ModelShape, folder: Path) -> bool:
    if not (folder / INDEX).is_file():
        return False
    config: object = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config == shape.config


def write_tokenizer(folder: Path, vocabulary: int) -> None:
    """Writes tokenizer.json: byte-level BPE, with a name for each row of the embedding.

    Args:
        folder: where to.
        vocabulary: V, at least 300.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    from pipeline.models import texts

    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocabulary, WORDS),
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.train_from_iterator([texts.text()[:100_000]], trainer)
    words.decoder = decoders.ByteLevel()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    words.add_tokens([f"<unused {number}>" for number in range(words.get_vocab_size(), vocabulary)])
    words.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "unk_token": "<unk>"}
    store.write_json(folder / "tokenizer_config.json", settings)


def _write_weights(shape: ModelShape, folder: Path, device: str) -> None:
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    places, size = dict[str, str](), 0
    for number, sizes in enumerate(_files(shape)):
        tensors = {name: _drawn(name, size, device) for name, size in sizes.items()}
        file = f"model-{number + 1:05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file)
        size += sum(tensor.nbytes for tensor in tensors.values())
    store.write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": places})


def _files(shape: ModelShape) -> Iterator[dict[str, tuple[int, ...]]]:
    """Tensor name → its shape, a file at a time: one in memory is enough."""
    width, inner, rows = shape.width, shape.inner, shape.vocabulary
    sizes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, width)}
    for layer in range(shape.layers):
        place = f"model.layers.{layer}."
        sizes |= {f"{place}self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
        sizes |= {f"{place}mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        sizes[f"{place}mlp.down_proj.weight"] = (width, inner)
        sizes |= {f"{place}{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
        if layer % LAYERS_A_FILE == LAYERS_A_FILE - 1:
            yield sizes
            sizes = {}
    yield sizes | {"model.norm.weight": (width,), "lm_head.weight": (rows, width)}


def _drawn(name: str, size: tuple[int, ...], device: str) -> object:
    """A tensor whose products have about the size that they have in a trained model, on the host."""
    import torch

    tensor = torch.empty(size, dtype=torch.float16, device=device)
    if len(size) == 1:  # norms; all ones would hide one that is swapped or forgotten
        return tensor.normal_(1.0, 0.1).cpu()
    # 0.02 in Llama-2-7B's products, which have 4096 inputs.
    return tensor.normal_(0.0, 1.0 if "embed" in name else 1.28 * size[1] ** -0.5).cpu()


if __name__ == "__main__":
    try:
        write(shapes.find(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:4])
    except UserError as error:
        sys.exit(f"error: {error}")
