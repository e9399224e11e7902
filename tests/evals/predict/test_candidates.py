"""Which variants --skip means, and what stands in for what they skip."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.calib.skip_options import SkipOptions
from pipeline.evals.predict import candidates
from pipeline.evals.predict.launches import StandIn
from pipeline.models.compensation import MapSizes
from pipeline.models.named_configs import NamedConfig
from pipeline.types import SkipSet, UserError
from tests import overlays, tiny

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 8,
    "num_attention_heads": 4, "vocab_size": 96,
}  # fmt: skip
MODEL = NamedConfig("m", CONFIG, Path("config.json"))
NONE = SkipOptions()


def names(*texts: str, model: NamedConfig = MODEL, **amounts: float | str) -> list[str]:
    return [one.name for one in candidates.candidates(model, texts, SkipOptions(**amounts))]  # type: ignore[arg-type]


def test_by_default_the_papers_fractions_of_each_kind() -> None:
    assert names() == [
        "block5-7", "block6-7", "block7", "attn5-7", "attn6-7", "attn7", "mlp5-7", "mlp6-7", "mlp7",
    ]  # fmt: skip


def test_kinds_take_an_amount_and_names_none() -> None:
    assert names("attn", "mlp", frac=0.25) == ["attn6-7", "mlp6-7"]
    assert names("block", "mlp0_3", count=1) == ["block7", "mlp0_3"]
    assert names("mlp", layers="1,4-5") == ["mlp1_4-5"]
    assert names("attn1", "attn1", "base", "mlp2~heal") == ["attn1", "mlp2~heal"]


@pytest.mark.parametrize(
    ("texts", "amounts", "message"),
    [
        (("attn",), {}, "--skip attn takes exactly one of --frac, --count and --layers; given: none"),
        (("attn",), {"frac": 0.3, "count": 2}, "given: --frac and --count"),
        (("attn1",), {"frac": 0.3}, "--frac, --count and --layers go with --skip attn, mlp or block"),
        ((), {"count": 3}, "--frac, --count and --layers go with --skip"),
        (("attn8",), {}, "layer 8 does not exist: the model has layers 0-7"),
        (("nonsense",), {}, "cannot read the skip set 'nonsense'"),
        (("",), {}, "cannot read the skip set ''"),
        (("mlp3~rank65",), {}, "rank65: a rank of 65 is not between 1 and the hidden size 64"),
    ],
)
def test_what_is_refused(texts: tuple[str, ...], amounts: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        names(*texts, **amounts)


@pytest.mark.parametrize(
    ("form", "parameters", "products", "stand_in"),
    [
        ("bias", 64, 0, StandIn(0, False)),
        ("linear", 64 * 64 + 64, 64 * 64, StandIn(1, True)),
        ("rank4", 2 * 4 * 64 + 64, 2 * 4 * 64, StandIn(2, True)),
        ("fold", 64, 0, StandIn(0, False)),
        ("fold+rank4", 2 * 4 * 64 + 64, 2 * 4 * 64, StandIn(2, True)),
    ],
)
def test_the_maps_of_a_form(form: str, parameters: int, products: int, stand_in: StandIn) -> None:
    (one,) = candidates.candidates(MODEL, [f"attn1+mlp1-2~{form}"], NONE)
    assert (one.name, one.skip) == (f"attn1+mlp1-2~{form}", SkipSet((1,), (1, 2)))
    assert one.maps == MapSizes(3 * parameters, 3 * products) and one.stand_ins == (stand_in,) * 3


def test_a_compensation_that_was_fitted_is_counted_as_it_is(workdir: Path) -> None:
    """In the overlay attn1 and mlp1 have matrices, by the name of a variant whose form is a bias."""
    folder = tiny.checkpoint(workdir / "m")
    overlay = overlays.of_form(folder, SkipSet((1,), (1,)), "linear")
    overlay.rename(folder / "block1~bias.safetensors")
    model = NamedConfig("m", {**CONFIG, "num_hidden_layers": 2}, folder / "config.json", folder)
    (one,) = candidates.candidates(model, ["block1~bias"], NONE)
    assert one.maps == MapSizes(2 * (64 * 64 + 64), 2 * 64 * 64) and one.stand_ins == (StandIn(1, True),) * 2
    (other,) = candidates.candidates(model, ["mlp1~bias"], NONE)
    assert other.maps == MapSizes(64, 0)


def test_what_the_config_drops_is_left_out_of_base_and_variants() -> None:
    model = NamedConfig("m", {**CONFIG, "drop_attn_list": [2, 3]}, Path("config.json"))
    assert candidates.base(model).name == "attn2-3"
    assert names("mlp7", "attn2", model=model) == ["attn2-3+mlp7"]
