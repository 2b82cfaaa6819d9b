"""Packing: native equals the numpy specification byte for byte, back and forth, whole and in chunks."""

import itertools
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import golden_bytes as golden
from lowbit import formats, ops, packed, reference
from lowbit.formats import FORMATS, Choice
from lowbit.packed import PackedTensor, layout_of
from lowbit.quantize import quantize, quantize_rows

ROWS = (1, 15, 16, 17, 33)
KS = (1, 31, 32, 33, 64, 96, 130, 172, 512)
ALL = list(FORMATS.values())
SCALED = [f for f in ALL if f.codes != formats.FLOAT]
SYMMETRIC = [f for f in SCALED if f.codes == formats.GRID and not f.has_min]


def by_name(format):
    return format.name


def normal(rows, k, seed=0):
    return (np.random.default_rng(seed).standard_normal((rows, k)) * 0.02).astype(np.float32)


def as_dtype(weight, dtype):
    return ops.fp32_to_bf16(weight) if dtype == "bf16" else weight.astype(dtype)


def check_equal(weight, format, group_size, full_range=True):
    """Native bytes, multiplier and values equal the specification's."""
    tensor = quantize(weight, format, group_size, full_range=full_range)
    data, multiplier = reference.quantize(weight, format, format.group(group_size), full_range=full_range)
    assert tensor.multiplier == multiplier
    assert tensor.data.tobytes() == data, (format.name, weight.shape, group_size)
    values = reference.dequantize(data, format, weight.shape, tensor.group_size, multiplier)
    assert np.array_equal(tensor.dequantize().view(np.uint32), values.view(np.uint32))
    return tensor


@pytest.mark.parametrize("format", ALL, ids=by_name)
@pytest.mark.parametrize("group_size", [32, 64, 128, 0])
def test_native_equals_the_specification(format, group_size):
    if format.codes == formats.FLOAT and group_size:
        pytest.skip("float formats have no groups")
    dtypes = ("float32", "float16", "bf16") if group_size in (0, 64) else ("float32",)
    for rows, k, dtype in itertools.product(ROWS, KS, dtypes):
        check_equal(as_dtype(normal(rows, k, seed=rows * k), dtype), format, group_size)


@pytest.mark.parametrize("format", SYMMETRIC, ids=by_name)
def test_clipped_grid_leaves_out_its_most_negative_code(format):
    for group_size, k in itertools.product((32, 0), (33, 512)):
        weight = normal(17, k)
        tensor = check_equal(weight, format, group_size, full_range=False)
        codes, _, _ = reference.unpack(format, tensor.layout, tensor.data.tobytes())
        assert codes.min() >= 1
        assert codes.max() == 2**format.bits - 1
    if format.name != "sym_int8":  # which never has it
        codes, _, _ = reference.unpack(format, tensor.layout, quantize(weight, format, 0).data.tobytes())
        assert codes.min() == 0


@pytest.mark.parametrize("format", ALL, ids=by_name)
@pytest.mark.parametrize(
    "case",
    {
        "zeros": np.zeros((17, 96), np.float32),
        "negative zeros": np.full((3, 70), -0.0, np.float32),
        "one group of zeros": np.where(np.arange(128) < 64, 0, normal(5, 128)).astype(np.float32),
        "constant": np.full((2, 64), -0.3, np.float32),
        "subnormal": np.ldexp(normal(4, 64), -140).astype(np.float32),
        "least subnormal": np.full((1, 33), 1e-45, np.float32),
        "wide range": (normal(16, 128) * np.logspace(-40, 0, 128)).astype(np.float32),
        "one outlier": np.where(np.eye(20, 64, 3) > 0, 1e4, normal(20, 64)).astype(np.float32),
        "opposite extremes": np.tile(np.array([-3.0, 3.0, 0.1], np.float32), (2, 30)),
        "all positive": np.abs(normal(7, 96)) + 1,
        "every half": np.arange(0, 0x7C00, dtype=np.uint16).view(np.float16).reshape(31, 1024),
    }.items(),
    ids=lambda case: case[0],
)
def test_unusual_weights(format, case):
    for group_size in (32, 0):
        tensor = check_equal(case[1], format, group_size)
        values = tensor.dequantize()
        assert np.isfinite(values).all()
        if not np.any(case[1]):
            assert not values.any()
            if format.codes != formats.FLOAT:  # one representation of zeros: the code of 0, scale 0
                assert tensor.data.tobytes() == quantize(np.zeros_like(case[1]), format, group_size).data.tobytes()


@pytest.mark.parametrize("format", [f for f in ALL if f.name != "fp16"], ids=by_name)
def test_huge_weights(format):
    weight = ops.fp32_to_bf16(normal(16, 128) * np.float32(5e31))
    tensor = check_equal(weight, format, None)
    values, original = tensor.dequantize(), ops.to_fp32(weight)
    assert np.abs(values - original).max() < 0.4 * np.abs(original).max()


@settings(max_examples=150, deadline=None)
@given(
    weight=arrays.arrays(
        np.float32,
        arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=70),
        elements=st.floats(-(2.0**126), 2.0**126, width=32),
        fill=st.sampled_from([0.0, -0.0, 0.25, -1.5]),
    ),
    format=st.sampled_from(SCALED),
    group_size=st.sampled_from([32, 64, 0]),
    full_range=st.booleans(),
)
def test_any_weights(weight, format, group_size, full_range):
    check_equal(weight, format, group_size, full_range)


@pytest.mark.parametrize("format", [f for f in SCALED if f.minifloat], ids=by_name)
def test_small_floats_round_ties_to_even(format):
    values = np.array(format.codebook[: format.minifloat.max_code + 1], np.float32)
    middle = (values[:-1] + values[1:]) / 2
    row = np.concatenate([[values[-1]], values, middle, -middle]).astype(np.float32)  # the first makes the scale 1
    tensor = quantize(row[None], format, -1, full_range=True)
    codes, scales, _ = reference.unpack(format, tensor.layout, tensor.data.tobytes())
    assert scales[0, 0] * tensor.multiplier == 1
    got = codes[0, 1 : len(row)]
    assert got[: len(values)].tolist() == list(range(len(values)))
    upper = np.arange(1, len(values))
    expected = np.where(upper % 2 == 0, upper, upper - 1)
    assert got[len(values) : len(values) + len(middle)].tolist() == expected.tolist()
    negative = got[len(values) + len(middle) :]
    assert negative.tolist() == np.where(expected > 0, expected + (1 << (format.bits - 1)), 0).tolist()


@pytest.mark.torch
@pytest.mark.parametrize("name", ["fp8_e4m3", "fp8_e5m2"])
def test_fp8_codes_are_those_of_torch(name):
    import torch

    format = FORMATS[name]
    top = reference.top_value(format)
    row = np.concatenate([[top], np.random.default_rng(0).standard_normal(4095) * np.logspace(-7, 1, 4095)])
    row = np.clip(row, -top, top).astype(np.float32)
    tensor = quantize(row[None], format, -1)
    codes, _, _ = reference.unpack(format, tensor.layout, tensor.data.tobytes())
    dtype = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}[name]
    theirs = torch.from_numpy(row).to(dtype).view(torch.uint8).numpy()
    assert np.array_equal(codes[0], np.where(theirs == 0x80, 0, theirs))  # our zero has no sign


# Relative RMS error on N(0, 0.02) in groups of 64: what ipex-llm's own quantisers gave (measured on its wheel), and the
# share of it ours may differ. The small floats round where upstream truncated, so there upstream is an upper bound.
UPSTREAM_ERROR = {
    "sym_int4": (0.0953, 0.02), "asym_int4": (0.0897, 0.02), "nf4": (0.0921, 0.02), "sym_int5": (0.0474, 0.02),
    "asym_int5": (0.0437, 0.02), "sym_int8": (0.0060, 0.02), "fp4": (0.1145, 0.1), "fp8_e5m2": (0.0984, 0.5),
    "fp8_e4m3": (0.030, 0.2),
}  # fmt: skip
# Formats whose error upstream did not give: measured here, so that a change is seen.
OWN_ERROR = {"sym_int3": 0.192, "nf3": 0.202, "fp6": 0.050, "fp16": 0.0002, "bf16": 0.0017, "fp32": 0.0}


@pytest.mark.parametrize("format", ALL, ids=by_name)
def test_error_on_normal_weights(format):
    weight = normal(512, 4096)
    error = np.sqrt(np.mean((quantize(weight, format).dequantize() - weight) ** 2)) / np.sqrt(np.mean(weight**2))
    if format.name in UPSTREAM_ERROR:
        upstream, share = UPSTREAM_ERROR[format.name]
        assert upstream * (1 - share) <= error <= upstream * 1.02
    else:
        assert error == pytest.approx(OWN_ERROR[format.name], rel=0.05)


@pytest.mark.parametrize("format", SCALED, ids=by_name)
def test_quantising_values_of_the_format_again_loses_nothing(format):
    first = quantize(normal(32, 256), format)
    again = quantize(first.dequantize(), format)
    if format.has_min:  # the range is rounded to fp16 twice
        assert np.abs(again.dequantize() - first.dequantize()).max() < 1e-4
    else:
        assert np.array_equal(again.dequantize(), first.dequantize())


@pytest.mark.parametrize("format", ALL, ids=by_name)
def test_golden_bytes(format):
    expected = golden.golden(format).read_text()
    assert golden.text(reference.quantize(golden.weight(), format, format.group(golden.GROUP))[0]) == expected
    assert golden.text(quantize(golden.weight(), format, golden.GROUP).data.tobytes()) == expected


@pytest.mark.parametrize("format", ALL, ids=by_name)
@pytest.mark.parametrize("shape", [(1, 1), (17, 33), (40, 300), (0, 64), (5, 0), (16, 4096)])
def test_layout_equals_the_native_one(format, shape):
    for group_size in (32, 256, 0):
        ours = layout_of(format, *shape, group_size)
        for key, value in ops.layout(format.id, *shape, group_size).items():
            assert getattr(ours, key) == value, key


@pytest.mark.parametrize("format", ALL, ids=by_name)
def test_chunks_equal_the_whole_and_threads_do_not_matter(format):
    weight = as_dtype(normal(75, 130), "bf16")
    whole = quantize(weight, format, 32)
    calls = []

    def read(start, stop):
        calls.append((start, stop))
        return weight[start:stop]

    for chunk_rows, threads in ((16, 1), (33, 2), (1, 3)):
        calls.clear()
        chunked = quantize_rows(read, weight.shape, format, 32, chunk_rows=chunk_rows, threads=threads)
        assert chunked.data.tobytes() == whole.data.tobytes()
        assert chunked.multiplier == whole.multiplier
        step = -(-chunk_rows // 16) * 16
        once = [(i, min(75, i + step)) for i in range(0, 75, step)]
        assert calls == (once if format.codes == formats.FLOAT else once * 2)
    calls.clear()
    assert quantize_rows(read, weight.shape, format, 32).data.tobytes() == whole.data.tobytes()
    assert calls == [(0, 75)]  # it fits in one chunk: read once


@pytest.mark.parametrize("format", ALL, ids=by_name)
@pytest.mark.parametrize("shape", [(5, 0), (0, 64), (0, 0)])
def test_empty_matrices(format, shape):
    for group_size in (32, 0):
        tensor = quantize(np.zeros(shape, np.float32), format, group_size)
        assert tensor.data.size == 0
        assert tensor.dequantize().shape == shape


def test_sources_may_be_strided_or_float64():
    weight = normal(20, 200)
    for strided in (weight[::2], weight[:, 3:150], weight[:, ::2], weight.T, weight[::-1]):
        expected = quantize(np.ascontiguousarray(strided), "sym_int4").data
        assert np.array_equal(quantize(strided, "sym_int4").data, expected)
    bf16 = ops.fp32_to_bf16(weight)
    assert np.array_equal(quantize(bf16[:, ::2], "nf4").data, quantize(np.ascontiguousarray(bf16[:, ::2]), "nf4").data)
    assert np.array_equal(quantize(weight.astype(np.float64), "nf4").data, quantize(weight, "nf4").data)


@pytest.mark.parametrize("format", ALL, ids=by_name)
def test_rows_by_range_and_by_id(format):
    tensor = quantize(normal(50, 100), format, 32)
    whole = tensor.dequantize()
    for first, count in ((0, 1), (15, 2), (16, 16), (49, 1), (10, 40), (50, 0)):
        assert np.array_equal(tensor.dequantize(first, count), whole[first : first + count])
    ids = np.array([49, 0, 17, 17, 3])
    assert np.array_equal(tensor.rows(ids), whole[ids])
    for bad in ([50], [-1]):
        with pytest.raises(IndexError, match="50 rows"):
            tensor.rows(np.array(bad))
    for first, count in ((-1, 2), (49, 2), (51, None)):
        with pytest.raises(IndexError, match="50 rows"):
            tensor.dequantize(first, count)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bf16"])
@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
@pytest.mark.parametrize("format", ["sym_int4", "bf16"])
def test_weights_that_are_not_finite_are_refused_by_name(dtype, value, word, format):
    weight = normal(40, 70)
    weight[33, 69] = value
    with pytest.raises(ValueError, match=rf"model\.layers\.3\.mlp contains {word}.*Download it again"):
        quantize(as_dtype(weight, dtype), format, name="model.layers.3.mlp")
    with pytest.raises(ValueError, match=word):
        quantize_rows(lambda a, b: as_dtype(weight, dtype)[a:b], weight.shape, format, chunk_rows=16)


def test_nan_beats_infinity():
    weight = np.array([[np.inf, np.nan, 1.0]], np.float32)
    assert np.isnan(ops.abs_max(weight, ops.pool()))
    assert ops.abs_max(weight[:, ::2], ops.pool()) == np.inf


def test_weights_too_large_for_a_format_name_a_wider_one():
    with pytest.raises(ValueError, match=r"head holds 70000, beyond the largest fp16.*\(65504\); store it as bf16"):
        quantize(np.full((2, 3), 70000, np.float32), "fp16", name="head")
    assert quantize(np.full((2, 3), 65504, np.float32), "fp16").dequantize()[0, 0] == 65504
    with pytest.raises(ValueError, match="store it as fp32"):
        quantize(np.full((2, 3), 3.4e38, np.float32), "bf16")
    with pytest.raises(ValueError, match=r"beyond 2\^127"):
        quantize(np.full((2, 3), 2e38, np.float32), "nf4")


def test_only_float_matrices_are_packed():
    with pytest.raises(ValueError, match="only matrices"):
        quantize(np.zeros(5, np.float32), "nf4")
    with pytest.raises(TypeError, match="int64"):
        quantize(np.zeros((2, 5), np.int64), "nf4")
    with pytest.raises(ValueError, match=r"were read as \[4, 5\]"):
        quantize_rows(lambda a, b: np.zeros((4, 5), np.float32), (6, 5), "nf4")


def test_names_carry_their_group_and_grid():
    weight = normal(16, 64)
    assert quantize(weight, "Q4_0").group_size == 32
    assert quantize(weight, "Q4_0", 128).group_size == 128  # an explicit size wins
    clipped = quantize(weight, "int4_clip").data
    assert np.array_equal(clipped, quantize(weight, "sym_int4", full_range=False).data)
    assert not np.array_equal(clipped, quantize(weight, "sym_int4").data)
    assert quantize(weight, Choice(FORMATS["nf4"], 32)).group_size == 32


@pytest.mark.parametrize("size", [0, 1, 64, 4096, (2 << 20) - 1, 2 << 20, (5 << 20) + 17])
def test_memory_is_aligned(size):
    block = packed.empty(size)
    assert (block.dtype, block.shape, block.flags.writeable) == (np.uint8, (size,), True)
    assert not size or block.ctypes.data % (packed.HUGE_PAGE if size >= packed.HUGE_PAGE else packed.LINE) == 0
    block[:] = 7
    assert (block == 7).all()


def test_the_extension_checks_what_it_is_given():
    tensor = quantize(normal(17, 70), "sym_int4")
    id, rows, k, group, multiplier, data = tensor.native()
    out = np.empty((rows, k), np.float32)
    shifted = packed.empty(len(data) + 64)[1 : len(data) + 1]
    for wrong, message in (
        ((99, rows, k, group, multiplier, data), "unknown format id 99"),
        ((id, rows + 16, k, group, multiplier, data), "takes .* bytes, got"),
        ((id, rows, k, 48, multiplier, data), "multiple of 32"),
        ((id, rows, k, group, 0.3, data), "power of two"),
        ((id, rows, k, group, multiplier, shifted), "64-byte boundary"),
        ((id, -1, k, group, multiplier, data), "negative"),
    ):
        with pytest.raises(ValueError, match=message):
            ops.dequantize(wrong, 0, out, ops.pool())
    with pytest.raises(ValueError, match=r"takes .* bytes, got 64"):
        ops.quantize(out, id, group, 1.0, True, packed.empty(64), ops.pool())
    with pytest.raises(ValueError, match=r"takes .* bytes"):
        PackedTensor(FORMATS["nf4"], 64, (16, 128), 1.0, data)


def test_many_threads_quantise_over_one_pool():
    weight = normal(64, 256)
    expected, results = quantize(weight, "nf4", threads=2).data.tobytes(), []

    def work():
        for _ in range(20):
            results.append(quantize(weight, "nf4", threads=2).data.tobytes() == expected)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == [True] * 80
