"""Names of quantisations, and what options ask for."""

from __future__ import annotations

import itertools

import pytest

from pipeline.models.quantisation.names import BLOCK_SIZES, METHODS, GraphPrecision, Quantisation, requested
from pipeline.store.records import QuantisedRecord
from pipeline.types import UserError, Variant


def test_every_name_is_read_back_and_is_one_alone() -> None:
    every = [Quantisation(*parts) for parts in itertools.product((4, 8), BLOCK_SIZES, METHODS)]
    assert [Quantisation.parse(one.name) for one in every] == every
    assert len({one.name for one in every}) == len({one.file for one in every}) == len(every)
    for one in every:  # records take every name
        QuantisedRecord(
            version=1, contents="0" * 64, quantisation=one.name, head_bits=8, sha256="0" * 64, bytes=1
        )


def test_what_is_as_usual_is_not_named() -> None:
    assert Quantisation(4).name == "int4" and Quantisation(8, 128).name == "int8-b128"
    assert Quantisation(4, 32).file == "quantised.int4-b32-rtn.safetensors"
    assert Quantisation(4, 32, "gptq").file == "quantised.int4-b32-gptq.safetensors"
    assert [Quantisation(4, method=one).value_bits for one in METHODS] == [4, 8]
    assert Quantisation(4).head_bits == Quantisation(8).head_bits == 8
    stem = Variant("m", precision="fp16", quantisation=Quantisation(4, 32).name, head="all").stem
    assert stem == "base.int4-b32-fp16.all"


@pytest.mark.parametrize(
    ("text", "options", "wanted"),
    [
        ("fp32", {}, [GraphPrecision("fp32")]),
        ("fp16", {}, [GraphPrecision("fp16")]),
        ("int4-fp32", {}, [GraphPrecision("fp32", Quantisation(4))]),
        ("int8-b128-fp16", {}, [GraphPrecision("fp16", Quantisation(8, 128))]),
        ("int8-b32-fp16", {"block_size": 32}, [GraphPrecision("fp16", Quantisation(8, 32))]),
        ("int4", {}, [GraphPrecision(one, Quantisation(4)) for one in ("fp32", "fp16")]),
        ("int4-fp16", {"usual": 32}, [GraphPrecision("fp16", Quantisation(4, 32))]),
        ("int4-b128-fp16", {"usual": 32}, [GraphPrecision("fp16", Quantisation(4, 128))]),
        ("int4-fp16", {"usual": 32, "block_size": 64}, [GraphPrecision("fp16", Quantisation(4))]),
        ("int4-fp16", {"method": "gptq"}, [GraphPrecision("fp16", Quantisation(4, method="gptq"))]),
        ("int4-b32-gptq-fp16", {}, [GraphPrecision("fp16", Quantisation(4, 32, "gptq"))]),
        ("int4", {"block_size": 32, "method": "rtn"}, [
            GraphPrecision(one, Quantisation(4, 32)) for one in ("fp32", "fp16")
        ]),
    ],
)  # fmt: skip
def test_what_options_ask_for(text: str, options: dict[str, int | str], wanted: list[GraphPrecision]) -> None:
    assert requested(text, **options) == wanted  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("int5", {}, "take int4 or int8"),
        ("bf16", {}, "int4 and int8 alone write both"),
        ("int4-bf16", {}, "choose fp32"),
        ("", {}, "choose fp32"),
        ("int4-b48-fp32", {}, "not one of 32, 64, 128"),
        ("int4", {"block_size": 0}, "not one of 32, 64, 128"),
        ("int4", {"method": "awq"}, "choose from rtn, gptq$"),
        ("int4-awq-fp32", {}, "choose from rtn, gptq$"),
        ("fp16", {"block_size": 64}, "--precision int4-fp16"),
        ("fp32", {"method": "rtn"}, "--precision int4-fp32"),
        ("int4-b32-fp32", {"block_size": 64}, "contradict each other"),
        ("int4-gptq-fp32", {"method": "rtn"}, "contradict each other"),
    ],
)
def test_what_is_refused(text: str, options: dict[str, int | str], says: str) -> None:
    with pytest.raises(UserError, match=says) as refusal:
        requested(text, **options)  # type: ignore[arg-type]
    assert "\n" not in str(refusal.value)


def test_no_quantisation() -> None:
    with pytest.raises(UserError, match="write it as int4"):
        Quantisation.parse("fp16")
