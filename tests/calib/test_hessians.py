"""What GPTQ reads of a layer's inputs is the sum over what hooks on transformers' own model see."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.calib import hessians
from pipeline.models.quantisation.gptq import gptq
from pipeline.models.reference import Reference
from pipeline.types import UserError
from tests import tiny

ATTENDED = ("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value")
TOKENS = np.random.default_rng(0).integers(3, 96, (3, 12))


def seen(folder):
    """Name of each linear layer's weight → XᵀX in float64, of whole passes."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    sums = {}

    def add(name):
        def hook(_module, args):
            rows = args[0].detach().reshape(-1, args[0].shape[-1]).double().numpy()
            sums[name] = sums.get(name, 0) + rows.T @ rows
            if any(part in name for part in ATTENDED):
                sums[name] = sums[name] + 0.25 * len(rows) * np.outer(rows[0], rows[0])

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            # transformers 5 has another name for the head of GPT-NeoX than the files.
            is_neox_head = model.config.model_type == "gpt_neox" and name == "lm_head"
            name = "embed_out" if is_neox_head else name
            module.register_forward_pre_hook(add(f"{name}.weight"))
    with torch.inference_mode():
        for row in TOKENS:
            model(input_ids=torch.from_numpy(row)[None], use_cache=False)
    return sums


def gathered(reference):
    """(place → weights that it has, weight → sum)."""
    names, sums = {}, {}
    for place, one in hessians.gather(reference, TOKENS, lambda: None):
        names[place] = list(one.readers)
        sums |= {name: one.arrays()[shared] for name, shared in one.readers.items()}
    return names, sums


@pytest.mark.parametrize(
    "model_type", ["llama", "phi3", "phi", "gemma3_text", "gpt_neox", "granite", "olmo2", "qwen2"]
)
def test_every_linear_layer_has_the_sum_that_hooks_see(model_type, tmp_path):
    folder = tiny.checkpoint(tmp_path / "m", model_type)
    reference = Reference(folder)
    names, sums = gathered(reference)
    wanted = seen(folder)
    assert list(names) == [*(f"layer{i}" for i in range(len(reference.layers))), "head"]
    assert set(sums) == set(wanted) == {name for of_place in names.values() for name in of_place}
    for name, total in wanted.items():
        np.testing.assert_allclose(sums[name], total, rtol=1e-4, atol=1e-5 * np.abs(total).max())


def test_what_reads_one_tensor_shares_a_sum(tmp_path):
    reference = Reference(tiny.checkpoint(tmp_path / "m"))
    _, first = next(hessians.gather(reference, TOKENS, lambda: None))
    readers = {name.split(".")[-2]: shared.split(".")[-2] for name, shared in first.readers.items()}
    assert readers == {
        "q_proj": "q_proj", "k_proj": "q_proj", "v_proj": "q_proj", "o_proj": "o_proj",
        "gate_proj": "gate_proj", "up_proj": "gate_proj", "down_proj": "down_proj",
    }  # fmt: skip
    assert set(first.sums) == set(first.readers.values())


def test_an_mlp_beside_attention_has_a_sum_of_its_own_in_which_all_tokens_count_the_same(tmp_path):
    reference = Reference(tiny.checkpoint(tmp_path / "m", "phi"))
    _, first = next(hessians.gather(reference, TOKENS, lambda: None))
    readers = {name.split(".")[-2]: shared.split(".")[-2] for name, shared in first.readers.items()}
    assert readers["v_proj"] == "q_proj" and readers["fc1"] == "fc1"


def test_every_sequence_of_every_place_advances_and_hooks_are_gone(tmp_path):
    reference = Reference(tiny.checkpoint(tmp_path / "m"))
    before = reference.logits_at(torch.from_numpy(TOKENS[:1]), torch.arange(12))
    steps = []
    for _ in hessians.gather(reference, TOKENS, lambda: steps.append(1)):
        pass
    assert len(steps) == 3 * (len(reference.layers) + 1)
    assert torch.equal(before, reference.logits_at(torch.from_numpy(TOKENS[:1]), torch.arange(12)))


def test_a_sum_that_is_not_finite_is_refused_by_name(tmp_path):
    reference = Reference(tiny.checkpoint(tmp_path / "m"))
    reference.model.get_parameter("model.layers.1.self_attn.v_proj.weight").data[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"the inputs of model\.layers\.1\.self_attn\.o_proj\.weight are not"):
        gathered(reference)


def test_gptq_with_these_sums_moves_a_layers_outputs_less_than_rounding(tmp_path):
    from pipeline.models.quantisation.blocks import dequantised, rounded

    reference = Reference(tiny.checkpoint(tmp_path / "m"))
    _, sums = gathered(reference)
    name = "model.layers.1.mlp.down_proj.weight"
    weight = np.ascontiguousarray(reference.model.get_parameter(name).detach().numpy().T)

    def moved(blocks):
        error = (weight - dequantised(blocks)).astype(np.float64)
        return np.trace(error.T @ sums[name] @ error)

    assert moved(gptq(weight, sums[name], 4, 32)) < 0.7 * moved(rounded(weight, 4, 32))
