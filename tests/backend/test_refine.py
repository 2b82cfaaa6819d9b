"""calibration/_refine.py: a known minimum is found, no sweep makes the error larger, every format and grouping."""

import numpy as np
import pytest

from lowbit import reference
from lowbit.calibration import Quantiser
from lowbit.calibration._gptq import gptq
from lowbit.calibration._refine import refine
from lowbit.formats import FLOAT, FORMATS, resolve

SCALED = [f for f in FORMATS.values() if f.codes != FLOAT]


def rounded(weight, choice, group):
    """Round-to-nearest codes, scales, minima of a matrix and the multiplier of its scales."""
    multiplier = reference.scale_multiplier(choice.format, float(np.abs(weight).max()))
    codes, scales, minima = reference.choose(weight, choice.format, group, multiplier, choice.full_range)
    return codes[:, : weight.shape[1]], scales, minima, multiplier


def error(weight, moments, choice, group, codes, scales, minima, multiplier):
    """tr((W - Q) H (W - Q)^T), float64."""
    scale, base = (np.repeat(x.astype(np.float32) * np.float32(multiplier), group, axis=1) for x in (scales, minima))
    k = weight.shape[1]
    away = (weight - reference.decode(codes, scale[:, :k], base[:, :k], choice.format)).astype(np.float64)
    return float(((away @ moments) * away).sum())


@pytest.mark.parametrize("format", SCALED, ids=lambda f: f.name)
@pytest.mark.parametrize("group", [32, 256])  # 256: more columns than pass their changes on at once
def test_no_sweep_makes_the_error_larger(format, group):
    random = np.random.default_rng(3)
    inputs = random.standard_normal((400, 256)) @ random.standard_normal((256, 256))
    inputs[:, 7] = 0
    moments, choice = inputs.T @ inputs, resolve(format.name)
    weight = random.standard_normal((20, 256)).astype(np.float32)
    weight[3, :64] = 0  # groups without a scale
    codes, scales, minima, multiplier = rounded(weight, choice, group)
    found = [error(weight, moments, choice, group, codes, scales, minima, multiplier)]
    for _ in range(3):
        refine(weight, moments, choice, group, multiplier, codes, scales, minima, sweeps=1)
        found.append(error(weight, moments, choice, group, codes, scales, minima, multiplier))
    assert found == sorted(found, reverse=True)
    assert found[-1] < (0.95 if format.bits == 8 else 0.8) * found[0]
    assert np.isfinite(scales).all()
    assert np.isfinite(minima).all()


@pytest.mark.parametrize("name", ["sym_int4", "asym_int4", "nf4"])
def test_a_scale_moves_to_where_its_codes_want_it(name):
    """Weights that the format holds exactly, rounded with scales a little too small, come out exact."""
    choice, group = resolve(name), 32
    random = np.random.default_rng(4)
    codes = random.integers(0, 16, (8, 64)).astype(np.uint8)
    codes[:, ::32], codes[:, 1::32] = 0, 15
    scales = np.full((8, 2), 0.5, np.float16)
    minima = np.full((8, 2), -0.25 if choice.format.has_min else 0, np.float16)
    scale, base = (np.repeat(x.astype(np.float32), group, axis=1) for x in (scales, minima))
    weight = reference.decode(codes, scale, base, choice.format)
    wrong = (scales * np.float16(0.97)).astype(np.float16)
    start = reference.encode(weight, np.repeat(wrong.astype(np.float32), group, axis=1), base, choice.format)
    inputs = random.standard_normal((200, 64))
    refine(weight, inputs.T @ inputs, choice, group, 1.0, start, wrong, minima, sweeps=8)
    found = reference.decode(start, np.repeat(wrong.astype(np.float32), group, axis=1), base, choice.format)
    np.testing.assert_allclose(found, weight, atol=2e-3)
    np.testing.assert_array_equal(start, codes)


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("format", SCALED, ids=lambda f: f.name)
def test_gptq_is_better_with_sweeps(format, act_order):
    random = np.random.default_rng(5)
    inputs = (random.standard_normal((500, 130)) @ random.standard_normal((130, 130))).astype(np.float32)
    weight = random.standard_normal((24, 130)).astype(np.float32)
    losses = []
    for sweeps in (0, 1, 4):
        tensor = gptq(weight, inputs.T @ inputs, resolve(format.name), 32, act_order=act_order, sweeps=sweeps)
        losses.append(float(np.square(inputs @ (tensor.dequantize() - weight).T).sum(dtype=np.float64)))
    assert losses == sorted(losses, reverse=True)
    assert losses[2] < 0.95 * losses[0]


def test_no_damping_and_too_little_text_end():
    weight, inputs = np.ones((16, 64), np.float32), np.eye(64, dtype=np.float32)[:3]
    tensor = gptq(weight, inputs.T @ inputs, resolve("nf4"), 32, damp=0.0, sweeps=1)
    np.testing.assert_allclose(tensor.dequantize(), 1, atol=1e-3)


def test_a_negative_number_of_sweeps_is_refused():
    with pytest.raises(ValueError, match="sweeps"):
        Quantiser("gptq", calibration=["some text"], sweeps=-1)
