"""The clip search: native equals the numpy specification, and does what it is for."""

import itertools

import numpy as np
import pytest

from lowbit import formats, reference
from lowbit.formats import FORMATS
from lowbit.quantize import CLIP_RATIOS, quantize

SCALED = [f for f in FORMATS.values() if f.codes != formats.FLOAT]


def heavy_tailed(rows, k, seed=0):
    return (np.random.default_rng(seed).standard_t(4, (rows, k)) * 0.02).astype(np.float32)


@pytest.mark.parametrize("format", SCALED, ids=lambda f: f.name)
def test_native_equals_the_specification(format):
    random = np.random.default_rng(1)
    for (rows, k), group, weighted in itertools.product(((17, 96), (5, 130), (33, 31)), (32, 64, 0), (False, True)):
        weight = heavy_tailed(rows, k, rows)
        importance = random.random(k).astype(np.float32) if weighted else None
        tensor = quantize(weight, format, group, clip_ratios=CLIP_RATIOS, importance=importance)
        data, _ = reference.quantize(weight, format, group, ratios=CLIP_RATIOS, importance=importance)
        assert tensor.data.tobytes() == data, (rows, k, group, weighted)


@pytest.mark.parametrize("full_range", [True, False])
def test_both_grids(full_range):
    weight = heavy_tailed(16, 128)
    tensor = quantize(weight, "sym_int4", 32, clip_ratios=CLIP_RATIOS, full_range=full_range)
    data, _ = reference.quantize(weight, FORMATS["sym_int4"], 32, ratios=CLIP_RATIOS, full_range=full_range)
    assert tensor.data.tobytes() == data


@pytest.mark.parametrize("format", SCALED, ids=lambda f: f.name)
def test_no_group_gets_worse_and_few_bits_get_better(format):
    weight = heavy_tailed(64, 512)

    def error(tensor, counts=1.0):
        return (counts * (tensor.dequantize() - weight).astype(np.float64) ** 2).reshape(64, -1, 64).sum(2)

    plain, searched = (quantize(weight, format, 64, clip_ratios=r) for r in (None, CLIP_RATIOS))
    assert (error(searched) <= error(plain) * (1 + 1e-9)).all()
    if format.bits <= 4:
        assert error(searched).sum() < 0.97 * error(plain).sum()

    importance = np.where(np.arange(512) % 64 < 8, 100, 1).astype(np.float32)
    weighted = quantize(weight, format, 64, importance=importance)
    assert error(weighted, importance).sum() <= error(searched, importance).sum()


def test_rows_may_be_packed_in_chunks():
    weight = heavy_tailed(48, 64)
    whole = quantize(weight, "nf4", clip_ratios=CLIP_RATIOS)
    from lowbit.quantize import quantize_rows

    chunked = quantize_rows(lambda a, b: weight[a:b], weight.shape, "nf4", clip_ratios=CLIP_RATIOS, chunk_rows=16)
    assert whole.data.tobytes() == chunked.data.tobytes()


def test_bad_input_is_refused():
    weight = heavy_tailed(16, 64)
    for ratios in ((), (0.0, 1.0), (1.5,), (float("nan"),)):
        with pytest.raises(ValueError, match="clip_ratios"):
            quantize(weight, "nf4", clip_ratios=ratios)
    for importance in (np.ones(63), np.full(64, -1.0), np.full(64, np.nan)):
        with pytest.raises(ValueError, match="importance"):
            quantize(weight, "nf4", importance=importance)
