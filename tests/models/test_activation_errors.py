"""What int8 activations do to each matrix, and matrices that do without them: against the arithmetic. No torch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lowbit import ops
from lowbit.models import EncoderSpec, ModelSpec, Rope
from lowbit.reference_decoder import Reference, as_bf16, as_int8
from models import tiny

TIERS = ops.tiers()
SPEC = ModelSpec(
    family="tiny", vocab_size=67, hidden_size=72, layers=2, heads=4, kv_heads=2, head_dim=32, ffn_size=80, context=256,
    ropes=(Rope("half", 32, tuple(1000 ** (-i / 16) for i in range(16))),), layer_rope=(0, 0),
)  # fmt: skip
ROLES = ["head", *(f"layers.{i}.{m}" for i in range(2) for m in ("qkv", "o", "gate_up", "down"))]
IDS = np.random.default_rng(0).integers(0, SPEC.vocab_size, 24, dtype=np.int32)
VARIANTS = {
    "plain": SPEC,
    "parallel": replace(SPEC, residual="parallel_separate", norm="layer", gated=False, activation="gelu"),
    "tied": replace(SPEC, tied_head=True),
}


def outliers(spec: ModelSpec) -> dict[str, np.ndarray]:
    """Random weights with biases; a channel of every norm is a hundred times larger, what reads it as much smaller."""
    extra = {f"layers.{i}.qkv.bias": ((spec.heads + 2 * spec.kv_heads) * spec.head_dim,) for i in range(spec.layers)}
    weights = tiny.random_weights(spec, extra)
    for i in range(spec.layers):
        for norm, reader in (("attention_norm", "qkv"), ("ffn_norm", "gate_up" if spec.gated else "up")):
            weights[f"layers.{i}.{norm}.weight"][3 + i] *= 100
            weights[f"layers.{i}.{reader}.weight"][:, 3 + i] /= 100
    return weights


class Measured(Reference):
    """A reference that measures: by role the inputs, and what rounding them to int8 does to the output.

    wide: the matrices whose inputs are rounded to bf16, the others' to int8; none: no inputs are.
    """

    def __init__(self, spec, tensors, wide=()):
        floats = {n: t if isinstance(t, np.ndarray) else t.dequantize() for n, t in tensors.items()}
        if spec.tied_head:
            floats["head.weight"] = floats["embedding.weight"]
        super().__init__(spec, floats)
        self.wide = wide
        self.errors: dict[str, float] = {}

    def linear(self, name, x):
        weight, bias = self.weights[f"{name}.weight"].T, self.weights.get(f"{name}.bias", 0.0)
        exact, rounded = x @ weight, as_int8(x) @ weight
        ratios = np.square(rounded - exact).sum(1) / np.square(exact).sum(1)
        self.errors[name] = float(np.sqrt(ratios.mean()))
        if self.wide:
            return (as_bf16(x) @ weight if name in self.wide else rounded) + bias
        return exact + bias

    def logits(self, tokens):
        x = self.embed(tokens)
        for i in range(self.spec.layers):
            x = self.layer(i, x)
        return self.linear("head", self.norm("final_norm", x))


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.square(x, dtype=np.float64).mean()))


@pytest.mark.parametrize("variant", VARIANTS)
def test_errors_are_those_of_the_arithmetic(variant):
    spec = VARIANTS[variant]
    tensors = tiny.packed(outliers(spec), "sym_int8", 32)
    reference = Measured(spec, tensors)
    reference.logits(IDS.tolist())
    up = "gate_up" if spec.gated else "up"
    assert min(reference.errors[f"layers.{i}.{m}"] for i in range(2) for m in ("qkv", up)) > 0.05
    assert max(reference.errors[f"layers.{i}.{m}"] for i in range(2) for m in ("o", "down")) < 0.02
    for tier in TIERS:
        errors = ops.decoder_activation_errors(tiny.decoder(spec, tensors, tier, "int8"), IDS, ops.pool(2))
        assert errors.keys() == reference.errors.keys()
        for role, error in reference.errors.items():  # a value on a rounding tie may fall either way
            assert errors[role] == pytest.approx(error, rel=0.02), (tier, role)


def test_errors_depend_on_no_threads_and_leave_no_trace():
    model = tiny.decoder(SPEC, tiny.packed(outliers(SPEC), "sym_int4"), TIERS[-1], "int8")
    before = tiny.run(model, tiny.cache(SPEC), IDS)
    one, three = (ops.decoder_activation_errors(model, IDS, ops.pool(threads)) for threads in (1, 3))
    assert one == three
    assert one.keys() == {*ROLES}
    assert np.array_equal(tiny.run(model, tiny.cache(SPEC), IDS), before)


def test_only_matrices_that_compute_on_int8_have_errors():
    tensors = tiny.packed(outliers(SPEC), "sym_int4")
    tensors["layers.1.down.weight"] = tiny.packed(outliers(SPEC), "fp16")["layers.1.down.weight"]
    tensors["head.weight"] = tiny.packed(outliers(SPEC), "fp8_e4m3")["head.weight"]
    model = ops.decoder(SPEC.to_dict(), tensors, "int8", None, ["layers.0.qkv"])
    errors = ops.decoder_activation_errors(model, IDS, ops.pool(1))
    assert sorted({*ROLES} - errors.keys()) == ["head", "layers.0.qkv", "layers.1.down"]
    assert ops.decoder_activation_errors(tiny.decoder(SPEC, tensors), IDS, ops.pool(1)) == {}  # fp32 compute


@pytest.mark.parametrize("variant", VARIANTS)
def test_matrices_with_outliers_read_inputs_in_bf16_and_the_others_in_int8(variant):
    spec = VARIANTS[variant]
    tensors = tiny.packed(outliers(spec), "sym_int8", 32)
    wide = ("head", "layers.0.qkv", "layers.1.gate_up" if spec.gated else "layers.1.up")
    expected = Measured(spec, tensors, wide).logits(IDS.tolist())
    all_rounded = Measured(spec, tensors, ("none",)).logits(IDS.tolist())
    for tier in TIERS:
        model = ops.decoder(spec.to_dict(), tensors, "int8", tier, wide)
        got = tiny.run(model, tiny.cache(spec), IDS)
        assert np.abs(got - expected).max(axis=1).min() <= 1e-4 * np.ptp(expected)  # a row without rounding ties
        assert rms(got - expected) <= 0.5 * rms(all_rounded - expected)


@pytest.mark.parametrize("tier", TIERS)
def test_all_matrices_in_bf16_are_near_fp32_compute(tier):
    tensors = tiny.packed(outliers(SPEC), "nf4")
    int8, wide = (ops.decoder(SPEC.to_dict(), tensors, "int8", tier, names) for names in ((), ROLES))
    exact = tiny.run(tiny.decoder(SPEC, tensors, tier), tiny.cache(SPEC), IDS)
    errors = [rms(tiny.run(model, tiny.cache(SPEC), IDS) - exact) / rms(exact) for model in (int8, wide)]
    assert errors[1] < 0.1 * errors[0]
    all_bf16 = tiny.decoder(SPEC, tensors, tier, "bf16")
    assert np.array_equal(tiny.run(all_bf16, tiny.cache(SPEC), IDS), tiny.run(wide, tiny.cache(SPEC), IDS))
    # Where fp32 is the compute type, outliers ask for nothing.
    all_fp32 = ops.decoder(SPEC.to_dict(), tensors, "fp32", tier, ROLES)
    assert np.array_equal(tiny.run(all_fp32, tiny.cache(SPEC), IDS), exact)


def test_company_does_not_change_a_bit_of_mixed_compute():
    """As with one compute type: the same bits for a prompt alone, beside others, and behind a kept prefix."""
    model = ops.decoder(SPEC.to_dict(), tiny.packed(outliers(SPEC), "sym_int4"), "int8", None, ROLES[::2])
    ids = np.random.default_rng(1).integers(0, SPEC.vocab_size, 90, dtype=np.int32)
    alone, kept, beside = (tiny.cache(SPEC) for _ in range(3))
    whole = tiny.run(model, alone, ids)
    together = ops.forward(model, [(tiny.cache(SPEC), IDS, True), (beside, ids, True)], ops.pool(2))
    assert np.array_equal(together[len(IDS) :], whole)
    tiny.run(model, kept, ids[:40])
    assert np.abs(tiny.run(model, kept, ids[40:]) - whole[40:]).max() <= 1e-4 * np.ptp(whole)


def test_refusals():
    tensors = tiny.packed(outliers(SPEC), "sym_int4")
    with pytest.raises(ValueError, match=r"no matrix is called layers\.7\.qkv"):
        ops.decoder(SPEC.to_dict(), tensors, "int8", None, ["layers.7.qkv"])
    model = tiny.decoder(SPEC, tensors, TIERS[-1], "int8")
    with pytest.raises(ValueError, match="67 is outside the vocabulary"):
        ops.decoder_activation_errors(model, np.array([67], np.int32), ops.pool(1))
    with pytest.raises(ValueError, match="no tokens"):
        ops.decoder_activation_errors(model, np.array([], np.int32), ops.pool(1))


# ---- encoders -----------------------------------------------------------------------------------------------------

ENCODER = EncoderSpec(
    family="tiny", vocab_size=67, hidden_size=64, layers=2, heads=4, head_dim=16, ffn_size=80, context=64, labels=3
)
ENCODER_ROLES = ["head", *(f"layers.{i}.{m}" for i in range(2) for m in ("qkv", "o", "up", "down"))]


def encoder_tensors(low_bit: str, place: str = "post") -> tuple[EncoderSpec, dict]:
    spec = replace(ENCODER, norm_place=place)
    random = np.random.default_rng(2)

    def matrix(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) * 2 / shape[-1] ** 0.5).astype(np.float32)

    weights = {"embedding.weight": matrix(67, 64) * 8, "head.weight": matrix(3, 64)}
    for i in range(2):
        at = f"layers.{i}."
        for norm in ("attention_norm", "ffn_norm"):
            weights |= {f"{at}{norm}.weight": np.ones(64, np.float32), f"{at}{norm}.bias": np.zeros(64, np.float32)}
        weights |= {f"{at}qkv.weight": matrix(192, 64), f"{at}o.weight": matrix(64, 64)}
        weights |= {f"{at}up.weight": matrix(80, 64), f"{at}down.weight": matrix(64, 80)}
        weights[f"{at}up.bias"] = matrix(1, 80)[0]
    weights["layers.1.up.weight"][:, 5] /= 200
    weights["layers.0.ffn_norm.weight" if place == "post" else "layers.1.ffn_norm.weight"][5] *= 200
    return spec, tiny.packed(weights, low_bit)


def texts(count: int) -> tuple[np.ndarray, np.ndarray, None]:
    random = np.random.default_rng(3)
    lengths = [int(n) for n in random.integers(1, 40, count)]
    return random.integers(0, 67, sum(lengths), dtype=np.int32), np.cumsum(lengths, dtype=np.int64), None


def test_an_encoder_is_measured_too():
    spec, tensors = encoder_tensors("sym_int8", "pre")
    ids, ends, _ = texts(3)
    encoder = ops.encoder(spec.to_dict(), tensors, "int8")
    one, two = (ops.encoder_activation_errors(encoder, ids, ends, ops.pool(threads)) for threads in (1, 2))
    assert one == two
    assert one.keys() == {*ENCODER_ROLES}
    assert one["layers.1.up"] > 0.05
    assert max(error for role, error in one.items() if role != "layers.1.up") < 0.02


@pytest.mark.parametrize("place", ["pre", "post"])
def test_matrices_with_outliers_of_an_encoder(place):
    """Short calls are one team's work, long ones each member's own: both have the same matrices in bf16."""
    spec, tensors = encoder_tensors("sym_int4", place)
    many = texts(40)
    ids, ends, _ = many
    mixed = ops.encoder(spec.to_dict(), tensors, "int8", None, ["layers.1.up", "layers.0.qkv", "layers.0.down"])
    exact, rounded = (
        ops.hidden_states(ops.encoder(spec.to_dict(), tensors, c), *many, ops.pool(1)) for c in ("fp32", "int8")
    )
    together = ops.hidden_states(mixed, *many, ops.pool(1))
    first = ops.hidden_states(mixed, ids[: ends[0]], ends[:1], None, ops.pool(2))
    assert np.array_equal(together[: ends[0]], first)
    assert rms(together - exact) < 0.9 * rms(rounded - exact)
    everything = ops.encoder(spec.to_dict(), tensors, "int8", None, ENCODER_ROLES)
    in_bf16 = ops.hidden_states(everything, *many, ops.pool(1))
    assert rms(in_bf16 - exact) < 0.5 * rms(rounded - exact)
    assert np.array_equal(ops.hidden_states(ops.encoder(spec.to_dict(), tensors, "bf16"), *many, ops.pool(1)), in_bf16)
    with pytest.raises(ValueError, match=r"no matrix is called head_dense"):
        ops.encoder(spec.to_dict(), tensors, "int8", None, ["head_dense"])
