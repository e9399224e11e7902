"""Folders that are no checkpoint: each is named for what it is, with the way to one."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from pipeline.models import unusable
from pipeline.types import UserError
from tests import tiny


def put(folder: Path, *names: str) -> Path:
    """A folder with files of these names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "holds no model.safetensors and no model.safetensors.index.json$"),
        (("inner/config.json",), "index.json; .*inner has a config.json"),
        (("a.gguf",), "holds GGUF files; name one: .*/a.gguf"),
        (
            ("pytorch_model.bin", "config.json"),
            r"only pickled weights \(pytorch_model.bin\).*save_pretrained",
        ),
        (("consolidated.00.pth", "params.json"), r"only pickled.*convert_…_weights_to_hf"),
        (("model.ckpt",), "only pickled weights"),
        (("consolidated.safetensors",), "which transformers does not load; take the Hugging Face form"),
        (("model.fp16.safetensors",), "rename it to model.safetensors"),
        (("model-00001-of-00002.safetensors",), "but no model.safetensors.index.json"),
        (("model.onnx",), "holds an ONNX graph .* use --from-onnx"),
        (("model.onnx", "mlp2~linear.safetensors"), "holds an ONNX graph .* use --from-onnx"),
        (("modules.json", "config_sentence_transformers.json", "pytorch_model.bin"), "a sentence encoder"),
        (("model_index.json",), "a pipeline of diffusers"),
    ],
)
def test_what_lies_there_instead(names: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        unusable.refuse_without_weights(put(tmp_path / "m", *names))
    assert "\n" not in str(refusal.value)


def test_a_foreign_adapter_with_and_without_weights(tmp_path: Path) -> None:
    folder = put(tmp_path / "it's", "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    with pytest.raises(UserError, match="is an adapter of 'org/base', not a model; merge it with") as refusal:
        unusable.refuse_adapter(folder)
    program, option, code = shlex.split(str(refusal.value).split("`")[1])
    compile(code, "advice", "exec")  # a folder's name may have a quote in it
    assert (program, option) == ("python", "-c") and repr(str(folder)) in code
    tiny.checkpoint(folder)
    with pytest.raises(UserError, match=r"beside a model's weights, and transformers would load the first"):
        unusable.refuse_adapter(folder)
    (folder / "adapter_config.json").unlink()
    unusable.refuse_adapter(folder)


def test_an_adapter_of_this_project_is_merged_by_export(tmp_path: Path) -> None:
    folder = put(
        tmp_path / "calib" / "my model" / "attn1" / "adapters" / "a", "adapter_config.json", "heal.json"
    )
    with pytest.raises(UserError, match=r"`pipeline export 'my model' --skip attn1 --adapter a`"):
        unusable.refuse_adapter(folder)


@pytest.mark.parametrize(
    ("config", "refused"),
    [
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "BertForMaskedLM"),
        ({"model_type": "modernbert"}, "modernbert"),
        ({"model_type": "t5", "is_encoder_decoder": True, "architectures": ["T5Model"]}, "T5Model"),
        ({"model_type": "roberta", "architectures": ["RobertaForCausalLM"]}, None),
        ({"model_type": "llama", "architectures": ["LlamaModel"]}, None),
        ({"model_type": "gpt2", "architectures": None}, None),
    ],
)
def test_encoders(config: dict[str, object], refused: str | None, tmp_path: Path) -> None:
    if refused is None:
        unusable.refuse_no_decoder(config, tmp_path)
        return
    with pytest.raises(UserError, match=f"is no causal language model but {refused}; "):
        unusable.refuse_no_decoder(config, tmp_path)


@pytest.mark.parametrize(
    "model_type", ["mixtral", "gemma", "phi3small", "falcon", "olmo", "olmo3", "granitemoe"]
)
def test_a_relative_of_what_is_authored_is_refused_by_its_own_name(model_type: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=rf"'{model_type}' is not authored .* olmo2, .*; where optimum has it, .*"
    ):
        unusable.refuse_other_architecture({"model_type": model_type}, tmp_path)
