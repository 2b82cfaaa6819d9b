"""Codes that somebody else chose: the native pack equals the reference byte for byte; words come apart."""

from __future__ import annotations

import numpy as np
import pytest

from lowbit import ops, packed, reference
from lowbit.formats import FLOAT, FORMATS
from lowbit.packed import PackedTensor

SCALED = [f for f in FORMATS.values() if f.codes != FLOAT]
AWQ = [0, 2, 4, 6, 1, 3, 5, 7]


@pytest.mark.parametrize("format", SCALED, ids=lambda f: f.name)
@pytest.mark.parametrize(
    ("rows", "k", "group"), [(16, 64, 32), (37, 100, 32), (1, 32, 64), (50, 172, 0), (33, 300, 128)]
)
def test_equals_the_reference(format, rows, k, group):
    random = np.random.default_rng(rows * k)
    layout = packed.layout_of(format, rows, k, group)
    groups = -(-k // layout.group_size)
    codes = random.integers(0, 2**format.bits, (rows, k), dtype=np.uint8)
    scales, minima = random.standard_normal((2, rows, groups)).astype(np.float16)
    full = np.full((rows, layout.k_padded), reference.zero_code(format), np.uint8)
    full[:, :k] = codes
    wide = [np.pad(a, ((0, 0), (0, layout.k_padded // layout.group_size - groups))) for a in (scales, minima)]
    expected = reference.pack(format, layout, full, *wide)
    for threads in (1, 2):
        pool = ops.pool(threads)
        got = PackedTensor.from_codes(format, group, codes, scales, minima if format.has_min else None, pool=pool)
        assert got.data.tobytes() == expected
    strided = np.zeros((rows, k + 5), np.uint8)
    strided[:, :k] = codes
    assert PackedTensor.from_codes(format, group, strided[:, :k], scales, minima).data.tobytes() == expected


def test_what_does_not_fit_is_refused():
    format, pool = FORMATS["sym_int4"], ops.pool(1)
    codes, scales = np.full((16, 64), 15, np.uint8), np.ones((16, 2), np.float16)
    PackedTensor.from_codes(format, 32, codes, scales)
    codes[3, 7] = 16
    with pytest.raises(ValueError, match="4 bits"):
        PackedTensor.from_codes(format, 32, codes, scales)
    with pytest.raises(ValueError, match=r"\[16, 2\]"):
        PackedTensor.from_codes(format, 32, codes, scales[:, :1])
    with pytest.raises(ValueError, match="bytes"):
        ops.pack_codes(codes, scales, None, format.id, 32, packed.empty(64), pool)
    with pytest.raises(ValueError, match="no codes"):
        PackedTensor.from_codes(FORMATS["fp16"], 32, codes, scales)


def words_of(codes: np.ndarray, axis: int, bits: int, places=range(8)) -> np.ndarray:
    """Packs codes along an axis, lowest bits first; places: which code of a word stands where."""
    per = 32 // bits
    codes = np.moveaxis(codes, axis, 0).astype(np.uint32)
    words = sum(codes[which::per] << np.uint32(bits * i) for i, which in enumerate(list(places)[:per]))
    return np.ascontiguousarray(np.moveaxis(np.asarray(words, np.uint32), 0, axis))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("rows", "k"), [(8, 8), (64, 96), (200, 136), (1000, 40)])
def test_words_come_apart(rows, k, threads):
    random, pool = np.random.default_rng(rows + k), ops.pool(threads)
    for bits in (4, 8):
        codes = random.integers(0, 2**bits, (rows, k), dtype=np.uint8)
        cases = {"along_k": words_of(codes, 1, bits).T, "along_rows": words_of(codes, 0, bits).T}
        if bits == 4:
            cases["along_rows_awq"] = words_of(codes, 0, bits, AWQ).T
        for order, words in cases.items():
            for first, last in ((0, rows), (rows // 16 * 8, rows), (0, rows - 3), (rows - 8, rows)):
                out = np.full((last - first, k), 255, np.uint8)
                ops.unpack_words(words, order, bits, first, out, pool)
                assert np.array_equal(out, codes[first:last]), (order, bits, first, last)


def test_words_that_are_not_there():
    words, pool = np.zeros((4, 16), np.uint32), ops.pool(1)
    for order, shape, first in (("along_k", (17, 32), 0), ("along_k", (16, 33), 0), ("along_rows", (8, 5), 0)):
        with pytest.raises(IndexError, match="words that hold"):
            ops.unpack_words(words, order, 4, first, np.empty(shape, np.uint8), pool)
    with pytest.raises(IndexError, match="words that hold"):
        ops.unpack_words(words, "along_rows", 4, 4, np.empty((8, 4), np.uint8), pool)
