"""Blocks: held to a search of all scales, to ONNX's own operator, and to ONNX Runtime."""

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from pipeline.models.quantisation import blocks
from pipeline.models.quantisation.blocks import Blocks, dequantised, packed, rounded, unpacked
from pipeline.types import UserError


def drawn(rows, columns, seed=0):
    weight = np.random.default_rng(seed).standard_normal((rows, columns)) * 0.05
    return weight.astype(np.float32)


def squares(weight, quantised, block_size):
    """[in / B, out]: squared error of each block, in float64."""
    errors = np.square(weight.astype(np.float64) - dequantised(quantised))
    return errors.reshape(-1, block_size, weight.shape[1]).sum(axis=1)


def searched(column, bits):
    """The least squared error of one block, over every float16 scale up to that which clips nothing."""
    highest = 2 ** (bits - 1) - 1
    last = np.float16(np.abs(column).max() / highest).view(np.uint16)
    scales = np.arange(1, last + 1, dtype=np.uint16).view(np.float16).astype(np.float64)
    scales = np.concatenate([scales, -scales]) if bits == 4 else scales
    integers = np.clip(np.rint(column / scales[:, None]), -highest - 1, highest)
    return np.square(integers * scales[:, None] - column).sum(axis=1).min()


@pytest.mark.parametrize("bits", [4, 8])
def test_the_error_is_near_that_of_the_best_of_all_scales(bits):
    weight = drawn(32, 6)
    errors = squares(weight, rounded(weight, bits, 8), 8)
    best = [[searched(weight[8 * k : 8 * k + 8, j], bits) for j in range(6)] for k in range(4)]
    assert (errors >= np.array(best) * (1 - 1e-5)).all()
    assert errors.sum() < 1.25 * np.sum(best)


@pytest.mark.parametrize("bits", [4, 8])
def test_no_other_integers_and_no_other_candidate_are_better(bits):
    weight = drawn(16, 5)
    quantised = rounded(weight, bits, 8)
    errors, (low, high) = squares(weight, quantised, 8), blocks.limits(bits)
    for clip in blocks.CLIPS[bits]:
        largest = np.abs(weight).reshape(2, 8, 5).max(axis=1) / high
        scales = (largest * np.float32(clip)).astype(np.float16) * np.sign(quantised.scales)
        wide = np.repeat(scales.astype(np.float64), 8, axis=0)
        values = np.clip(np.rint(weight / wide), low, high).astype(np.int8)
        other = squares(weight, Blocks(values, scales), 8)
        assert (errors <= other * (1 + 1e-5)).all()
    for step in (-1, 1):
        values = np.clip(quantised.values + step, low, high).astype(np.int8)
        one_by_one = np.abs(weight - dequantised(Blocks(values, quantised.scales)))
        assert (np.abs(weight - dequantised(quantised)) <= one_by_one).all()


@pytest.mark.parametrize(("bits", "largest"), [(4, -8), (8, 127), (8, -127)])
def test_weights_that_are_in_blocks_already_stay_as_they_are(bits, largest):
    rng = np.random.default_rng(1)
    values = rng.integers(-7, 8, (64, 3)).astype(np.int8)
    values[::32] = largest
    signs = rng.choice([-1, 1], (2, 3)) if bits == 4 else np.ones((2, 3))
    weight = dequantised(Blocks(values, np.float16(2.0**-6 * signs)))
    assert np.array_equal(dequantised(rounded(weight, bits, 32)), weight)


def test_the_largest_weight_of_four_bits_is_on_the_side_with_a_level_more():
    weight = drawn(64, 40)
    quantised = rounded(weight, 4, 64)
    largest = np.abs(weight).argmax(axis=0)
    assert np.array_equal(np.sign(quantised.scales[0]), -np.sign(weight[largest, range(40)]))
    assert (quantised.values[largest, range(40)] < -6).all()
    assert (rounded(weight, 8, 64).scales > 0).all()


def test_what_counts_more_is_rounded_better():
    weight, importance = drawn(64, 40), np.ones(64)
    importance[:8] = 100
    plain, weighted = (
        blocks.nearest(weight, scales, 4) * scales.astype(np.float32) - weight
        for scales in (blocks.best_scales(weight, 4), blocks.best_scales(weight, 4, importance))
    )
    assert np.square(weighted[:8]).sum() < 0.9 * np.square(plain[:8]).sum()
    assert np.square(plain).sum() < np.square(weighted).sum()


def test_the_pieces_that_are_rounded_at_a_time_change_nothing(monkeypatch):
    weight = drawn(64, 50)
    whole = rounded(weight, 4, 32)
    monkeypatch.setattr(blocks, "_PIECE", 32 * 7)
    pieces = rounded(weight, 4, 32)
    assert np.array_equal(whole.values, pieces.values)
    assert np.array_equal(whole.scales, pieces.scales)


def test_processors_that_share_the_work_change_nothing(monkeypatch):
    weight = drawn(256, 300)
    monkeypatch.setattr(blocks, "_PIECE", 32 * 50)
    monkeypatch.setattr(blocks.processes, "usable_processors", lambda: {0})
    alone = rounded(weight, 4, 32)
    monkeypatch.setattr(blocks.processes, "usable_processors", lambda: set(range(8)))
    shared = rounded(weight, 4, 32)
    assert np.array_equal(alone.values, shared.values) and np.array_equal(alone.scales, shared.scales)


def test_a_transposed_view_is_the_same_weight():
    weight = drawn(64, 50)
    view = rounded(np.ascontiguousarray(weight.T).T, 4, 32)
    assert np.array_equal(rounded(weight, 4, 32).values, view.values)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-7, 1e-5])
def test_zeros_and_tiny_weights_are_no_worse_than_zeros(bits, size):
    weight = drawn(32, 4) * np.float32(size)
    quantised = rounded(weight, bits, 32)
    assert (quantised.scales != 0).all()
    assert np.isfinite(dequantised(quantised)).all()
    assert np.square(weight - dequantised(quantised)).sum() <= np.square(weight).sum()


@pytest.mark.parametrize(
    ("number", "words"), [(np.nan, "NaN"), (-np.inf, "infinity"), (1e6, "beyond float16")]
)
def test_a_number_that_no_block_holds_is_refused(number, words):
    weight = drawn(32, 2)
    weight[3, 1] = number
    with pytest.raises(UserError, match=words):
        rounded(weight, 4, 32)


def test_blocks_that_do_not_divide_are_refused_with_those_that_do():
    with pytest.raises(UserError, match=r"blocks of 128 do not divide a weight's 576 inputs; .* 64"):
        rounded(drawn(576, 1), 4, 128)


def graph(quantised, bits):
    """A graph that is one DequantizeLinear of packed values."""
    kind = TensorProto.INT4 if bits == 4 else TensorProto.INT8
    shape = quantised.values.shape
    values = helper.make_tensor("values", kind, shape, packed(quantised.values, bits), raw=True)
    scales = onnx.numpy_helper.from_array(quantised.scales, "scales")
    node = helper.make_node(
        "DequantizeLinear", ["values", "scales"], ["weight"], axis=0, block_size=quantised.block_size
    )
    output = helper.make_tensor_value_info("weight", TensorProto.FLOAT16, shape)
    whole = helper.make_graph([node], "g", [], [output], [values, scales])
    return helper.make_model(whole, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


@pytest.mark.parametrize("bits", [4, 8])
def test_onnx_and_onnx_runtime_read_the_packed_form_as_we_do(bits):
    quantised = rounded(drawn(64, 6), bits, 32)
    model = graph(quantised, bits)
    wanted = dequantised(quantised).astype(np.float16)
    (theirs,) = ReferenceEvaluator(model).run(None, {})
    assert np.array_equal(theirs, wanted)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert np.array_equal(session.run(None, {})[0], wanted)


@pytest.mark.parametrize("level", ["0", "4"])
def test_the_n_bit_kernel_of_onnx_runtime_takes_scales_below_zero(level, tmp_path):
    """TensorRT is held to that where graphs are built."""
    quantised = rounded(drawn(64, 32), 4, 32)
    assert (quantised.scales < 0).any()
    model = graph(quantised, 4)
    model.graph.initializer[1].CopyFrom(
        onnx.numpy_helper.from_array(quantised.scales.astype(np.float32), "scales")
    )
    model.graph.node.append(helper.make_node("MatMul", ["x", "weight"], ["y"]))
    model.graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, (3, 64)))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, (3, 32)))
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    x = drawn(3, 64, seed=1)
    wanted = x @ dequantised(quantised)
    limit = {"0": 1e-5, "4": 0.02}[level] * np.abs(wanted).max()  # at level 4 x is rounded to int8
    assert np.abs(session.run(None, {"x": x})[0] - wanted).max() < limit
    assert [n.op_type for n in onnx.load(tmp_path / "optimised.onnx").graph.node] == ["MatMulNBits"]


def test_four_bits_lie_two_in_a_byte_the_first_in_its_lower_half():
    values = np.array([[1, -2], [7, -8]], np.int8)
    assert packed(values, 4) == bytes([0xE1, 0x87])
    assert packed(values.T, 4) == bytes([0x71, 0x8E])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(4, 6), (3, 5)])
def test_what_is_packed_can_be_unpacked(bits, shape):
    low, high = blocks.limits(bits)
    values = np.random.default_rng(0).integers(low, high + 1, shape).astype(np.int8)
    data = packed(values, bits)
    assert len(data) == -(-values.size * bits // 8)
    assert np.array_equal(unpacked(data, bits, shape), values)
    assert unpacked(data, bits, shape).dtype == np.int8


def test_int4_of_ml_dtypes_is_what_is_packed():
    values = np.arange(-8, 8, dtype=np.int8).reshape(2, 8)
    tensor = onnx.numpy_helper.from_array(values.astype(ml_dtypes.int4))
    assert packed(values, 4) == tensor.raw_data
