"""Sessions over one decoder: batches, chunks, truncation, threads, bad calls, NaN, cache types. No torch."""

from __future__ import annotations

import dataclasses
import resource
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lowbit import ops
from lowbit.models import ModelSpec, Rope
from lowbit.reference_decoder import Reference
from models import tiny

TIERS = ops.tiers()
SPEC = ModelSpec(
    family="tiny", vocab_size=67, hidden_size=64, layers=2, heads=6, kv_heads=2, head_dim=32, ffn_size=72, context=2048,
    ropes=(Rope("half", 32, tuple(1000 ** (-i / 16) for i in range(16))),), layer_rope=(0, 0), layer_window=(0, 40),
)  # fmt: skip
WEIGHTS = tiny.random_weights(SPEC)
POOL = ops.pool(2)


def tokens(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, SPEC.vocab_size, count, dtype=np.int32)


@pytest.fixture(scope="module", params=TIERS)
def model(request):
    return tiny.decoder(SPEC, tiny.packed(WEIGHTS), request.param)


def assert_close(ours: np.ndarray, exact: np.ndarray, tolerance: float = 1e-4) -> None:
    assert ours.shape == exact.shape
    assert np.abs(ours - exact).max() <= tolerance * (exact.max() - exact.min())


def dequantised(tensors: dict, int8: bool = False) -> Reference:
    return Reference(
        SPEC, {n: t if isinstance(t, np.ndarray) else t.dequantize() for n, t in tensors.items()}, int8=int8
    )


def rms(x: np.ndarray) -> float:
    return float(np.sqrt((x * x).mean()))


def test_parts_of_one_call_do_not_see_each_other(model):
    """Any mix of prompts and steps gives each session what it would get alone."""
    alone = [Reference(SPEC, WEIGHTS).logits(tokens(n, n).tolist()) for n in (3, 40, 1, 90)]
    sessions = [tiny.cache(SPEC) for _ in alone]
    first = [(s, tokens(len(a), len(a))[: (len(a) + 1) // 2], True) for s, a in zip(sessions, alone, strict=True)]
    got = ops.forward(model, first, POOL)
    assert_close(got, np.concatenate([a[: (len(a) + 1) // 2] for a in alone]))
    rest = [
        (s, tokens(len(a), len(a))[s.length :], i == 3)
        for i, (s, a) in enumerate(zip(sessions, alone, strict=True))
        if len(a) > 1
    ]
    got = ops.forward(model, rest, POOL)
    assert_close(got, np.concatenate([alone[0][-1:], alone[1][-1:], alone[3][45:]]))


def test_long_prompts_pass_in_chunks(model):
    """More rows than a chunk holds, in one part and over several, equal the same rows in small pieces."""
    ids, short = tokens(1300), tokens(250, 1)
    a, b = tiny.cache(SPEC, 1300), tiny.cache(SPEC, 300)
    both = ops.forward(model, [(b, short, True), (a, ids, True)], POOL)
    pieces = tiny.cache(SPEC, 1300)
    small = [ops.forward(model, [(pieces, ids[i : i + 100], True)], POOL) for i in range(0, 1300, 100)]
    assert_close(both[250:], np.concatenate(small), 1e-5)
    last = ops.forward(model, [(tiny.cache(SPEC, 1300), ids, False)], POOL)
    assert_close(last, both[-1:], 1e-5)
    exact = Reference(SPEC, WEIGHTS).logits(ids[:600].tolist())
    assert_close(both[250:850], exact)


@pytest.mark.parametrize(
    "changes", [{}, {"layer_window": (530, 0)}, {"alibi_slopes": (0.5, 0.1, 0.02, 0.01, 0.005, 0.0)}]
)
def test_steps_far_into_a_context(model, changes):
    """Steps cut their keys into spans; steps and short parts after more than two spans equal the long prompt."""
    spec = dataclasses.replace(SPEC, **changes)
    model = tiny.decoder(spec, tiny.packed(WEIGHTS)) if changes else model
    ids = tokens(1190, 4)
    whole = ops.forward(model, [(tiny.cache(spec, 1190), ids, True)], POOL)
    session, neighbour = tiny.cache(spec, 1190), tiny.cache(spec, 1190)
    ops.forward(model, [(session, ids[:1150], False), (neighbour, ids[:505], False)], POOL)
    assert_close(tiny.run(model, session, ids[1150:1160]), whole[1150:1160], 1e-5)
    for i in range(15):
        parts = [(session, ids[1160 + i : 1161 + i], False), (neighbour, ids[505 + i : 506 + i], False)]
        assert_close(ops.forward(model, parts, POOL), whole[[1160 + i, 505 + i]], 1e-5)
    assert_close(tiny.run(model, session, ids[1175:]), whole[1175:], 1e-5)


def test_steps_behind_spans_of_every_length():
    """Spans of keys are longer further on: steps at their borders and beyond equal the long prompt."""
    model, ids = tiny.decoder(SPEC, tiny.packed(WEIGHTS), TIERS[-1]), tokens(10_300, 4)
    session = tiny.cache(SPEC, ids.size)
    whole = ops.forward(model, [(session, ids, True)], POOL)
    for at in (10_249, 8193, 8192, 8191, 3073, 3072, 2049, 2048, 2047, 512):
        session.truncate(at)
        assert_close(tiny.run(model, session, ids[at : at + 1]), whole[at : at + 1], 1e-5)


def test_a_cache_is_whole_in_huge_pages():
    """Blocks of positions fill pages that huge pages make up, or nearly."""
    for kind in ("int8", "int16", "fp16"):
        session = ops.kv_cache(24, 2, 64, 4096, kind)
        session.fill(1)
        assert ops.kv_bytes([session]) in (2 << 20, 4 << 20)
        session.truncate(0)
        session = ops.kv_cache(24, 2, 64, 4096, kind)
        session.fill(4000)
        assert ops.kv_bytes([session]) <= 1.1 * 4096 * session.bytes_per_position


def test_company_does_not_change_a_bit(model):
    """A part's logits are the same bits whichever parts share the pass, even where a chunk ends inside of it."""
    for low_bit, compute, kv in (("fp32", "fp32", "fp32"), ("sym_int4", "int8", "int8"), ("sym_int4", "int8", "int16")):
        model = tiny.decoder(SPEC, tiny.packed(WEIGHTS, low_bit), TIERS[-1], compute)
        results = []
        for company in (0, 1, 507, 509):
            session, other = tiny.cache(SPEC, 900, kv), tiny.cache(SPEC, 600, kv)
            got = [ops.forward(model, [(session, tokens(850)[:700], False)], POOL)]
            for part in (tokens(850)[700:706], tokens(850)[706:707], tokens(850)[707:800]):
                parts = [(other, tokens(company, 9), False)] * bool(company) + [(session, part, True)]
                got.append(ops.forward(model, parts, POOL)[bool(company) :])
                other.truncate(0)
            results.append(np.concatenate(got))
        for result in results[1:]:
            np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("cut", [0, 1, 13, 63, 64, 65, 99])
def test_truncate_and_continue(model, cut):
    session = tiny.cache(SPEC, 200)
    tiny.run(model, session, tokens(100, 5))
    session.truncate(cut)
    assert session.length == cut
    continued = tiny.run(model, session, tokens(30, 6))
    fresh = tiny.run(model, tiny.cache(SPEC, 200), np.concatenate([tokens(100, 5)[:cut], tokens(30, 6)]))
    assert_close(continued, fresh[cut:], 1e-5)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_thread_counts_agree(model, threads):
    whole = ops.forward(model, [(tiny.cache(SPEC), tokens(80), True)], ops.pool(threads))
    assert_close(whole, Reference(SPEC, WEIGHTS).logits(tokens(80).tolist()))
    session = tiny.cache(SPEC)
    steps = [ops.forward(model, [(session, tokens(80)[i : i + 1], False)], ops.pool(threads)) for i in range(80)]
    assert_close(np.concatenate(steps), whole, 1e-5)
    session = tiny.cache(SPEC, 600)
    long = [
        ops.forward(model, [(session, tokens(601)[a:b], False)], ops.pool(threads)) for a, b in ((0, 599), (599, 600))
    ]
    session = tiny.cache(SPEC, 600)
    alone = [ops.forward(model, [(session, tokens(601)[a:b], False)], ops.pool(1)) for a, b in ((0, 599), (599, 600))]
    np.testing.assert_array_equal(long, alone)  # no sum crosses threads


def test_many_threads_share_a_decoder(model):
    """Sessions driven from several Python threads at once, on different pools, stay apart."""

    def drive(seed: int) -> np.ndarray:
        session, pool = tiny.cache(SPEC), ops.pool(1 + seed % 3)
        out = [ops.forward(model, [(session, tokens(20, seed), True)], pool)]
        out += [ops.forward(model, [(session, tokens(60, seed)[i : i + 1], True)], pool) for i in range(20, 60)]
        return np.concatenate(out)

    with ThreadPoolExecutor(6) as executor:
        results = list(executor.map(drive, range(12)))
    for seed, result in enumerate(results):
        assert_close(result, Reference(SPEC, WEIGHTS).logits(tokens(60, seed).tolist()))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("fp32", 1e-4), ("int16", 3e-4), ("fp16", 2e-3), ("bf16", 2e-2), ("int8", 4e-2)]
)
def test_cache_types(model, dtype, tolerance):
    exact = Reference(SPEC, WEIGHTS).logits(tokens(80).tolist())
    session = tiny.cache(SPEC, 80, dtype)
    got = np.concatenate([tiny.run(model, session, tokens(80)[a:b]) for a, b in ((0, 70), (70, 71), (71, 80))])
    assert_close(got, exact, tolerance)
    if dtype != "fp32":
        assert np.abs(got - exact).max() > 1e-6  # it is really stored in fewer bits


BIASED = {f"layers.{i}.qkv.bias": ((SPEC.heads + 2 * SPEC.kv_heads) * SPEC.head_dim,) for i in range(2)}
NORMED = {f"layers.{i}.{name}_norm.weight": (SPEC.head_dim,) for i in range(2) for name in "qk"}
LAYER_NORMED = {f"layers.{i}.{name}_norm.bias": (SPEC.hidden_size,) for i in range(2) for name in ("attention", "ffn")}


@pytest.mark.parametrize(
    ("changes", "extra"),
    [
        ({}, {}),
        ({"ropes": (), "layer_rope": ()}, BIASED),
        ({"ropes": (Rope("interleaved", 16, SPEC.ropes[0].inv_freq[::2]),)}, NORMED),
        ({"norm": "layer", "head_dim": 20, "ropes": (), "layer_rope": ()}, LAYER_NORMED | {"final_norm.bias": (64,)}),
    ],
)
@pytest.mark.parametrize("tier", TIERS)
def test_an_int8_cache_is_what_the_reference_rounds(tier, changes, extra):
    spec = dataclasses.replace(SPEC, **changes)
    weights = tiny.random_weights(spec, extra)
    model, ids = tiny.decoder(spec, tiny.packed(weights), tier), tokens(150)
    session = tiny.cache(spec, 150, "int8")
    got = np.concatenate([tiny.run(model, session, ids[a:b]) for a, b in ((0, 100), (100, 101), (101, 150))])
    # In single precision, and with queries of 16 bits, a code may fall on the other side of a half: one in 127, of one
    # element.
    assert_close(got, Reference(spec, weights, kv_int8=True).logits(ids.tolist()), 3e-3)
    exact = Reference(spec, weights).logits(ids.tolist())
    assert rms(got - exact) > 1e-3 * rms(exact)
    assert_close(got, exact, 6e-2)


def test_large_channels_of_keys_cost_an_int8_cache_nothing():
    """Keys of which two channels are 50 times larger, and queries where they are as much smaller: the same model."""
    spec, planted = SPEC, {name: array.copy() for name, array in WEIGHTS.items()}
    q, group = spec.heads * spec.head_dim, spec.heads // spec.kv_heads
    for i in range(spec.layers):
        factors = np.ones((spec.kv_heads, spec.head_dim), np.float32)
        factors[:, [3 + i, 19 + i]] = 50  # they rotate into each other
        planted[f"layers.{i}.qkv.weight"][q : q + factors.size] *= factors.reshape(-1, 1)
        planted[f"layers.{i}.qkv.weight"][:q] /= np.repeat(factors, group, axis=0).reshape(-1, 1)
    ids, exact = tokens(200), Reference(spec, WEIGHTS).logits(tokens(200).tolist())
    errors = []
    for weights in (WEIGHTS, planted):
        model = tiny.decoder(spec, tiny.packed(weights), TIERS[-1])
        errors.append(rms(tiny.run(model, tiny.cache(spec, 200, "int8"), ids) - exact))
    assert errors[1] < 1.2 * errors[0]


def test_an_int8_cache_is_forked_and_cut_like_any_other():
    model = tiny.decoder(SPEC, tiny.packed(WEIGHTS), TIERS[-1])
    session = tiny.cache(SPEC, 700, "int8")
    tiny.run(model, session, tokens(650))
    for keep in (1, 64, 100, 600):
        fork = session.fork(keep)
        goes_on = tiny.run(model, fork, tokens(40, 3))
        fresh = tiny.cache(SPEC, 700, "int8")
        tiny.run(model, fresh, tokens(650)[:keep])
        np.testing.assert_array_equal(goes_on, tiny.run(model, fresh, tokens(40, 3)))
        fork.truncate(keep)
        np.testing.assert_array_equal(goes_on, tiny.run(model, fork, tokens(40, 3)))
    halves = tiny.cache(SPEC, 700, "fp16").bytes_per_position
    assert session.bytes_per_position < 0.6 * halves  # 32 codes and a scale for 64 bytes


def test_a_filled_cache_holds_zeros():
    model = tiny.decoder(SPEC, tiny.packed(WEIGHTS), TIERS[-1])
    for dtype in ("fp32", "fp16", "int16", "int8"):
        session = tiny.cache(SPEC, 700, dtype)
        session.fill(650)
        assert session.length == 650
        assert np.isfinite(tiny.run(model, session, tokens(5))).all()
        with pytest.raises(ValueError, match="only an empty KvCache"):
            session.fill(1)


@pytest.mark.parametrize("low_bit", ["sym_int4", "nf4", "asym_int4", "sym_int8", "fp8_e4m3", "bf16"])
@pytest.mark.parametrize("group_size", [32, 64, 0])
def test_formats(low_bit, group_size):
    tensors = tiny.packed(WEIGHTS, low_bit, None if low_bit == "bf16" else group_size)
    exact = dequantised(tensors).logits(tokens(20).tolist())
    assert_close(tiny.run(tiny.decoder(SPEC, tensors, TIERS[-1]), tiny.cache(SPEC), tokens(20)), exact)


@pytest.mark.parametrize("low_bit", ["sym_int3", "sym_int4", "asym_int4", "sym_int5", "sym_int8"])
@pytest.mark.parametrize("group_size", [32, 64, 0])
def test_int8_compute(low_bit, group_size):
    """The only difference to fp32 is the rounding of inputs, which the reference does too.

    A value on a rounding tie may fall either way and moves what follows; rows without one are equal.
    """
    tensors = tiny.packed(WEIGHTS, low_bit, group_size)
    rounded, plain = (dequantised(tensors, int8).logits(tokens(20).tolist()) for int8 in (True, False))
    for tier in TIERS:
        got = tiny.run(tiny.decoder(SPEC, tensors, tier, "int8"), tiny.cache(SPEC), tokens(20))
        assert np.abs(got - rounded).max(axis=1).min() <= 1e-5 * (rounded.max() - rounded.min())
        assert rms(got - rounded) <= 0.5 * rms(got - plain)


def test_mixed_formats_share_inputs():
    """Matrices that read the same rows may differ in group size and compute type (modules_to_not_convert)."""
    tensors = tiny.packed(WEIGHTS, "sym_int4", 64)
    tensors |= {n: t for n, t in tiny.packed(WEIGHTS, "sym_int8", 128).items() if "qkv" in n or "down" in n}
    tensors |= {n: t for n, t in tiny.packed(WEIGHTS, "fp16").items() if ".0.gate_up" in n or n == "head.weight"}
    tensors |= {n: t for n, t in tiny.packed(WEIGHTS, "bf16").items() if ".1.gate_up" in n}
    exact = dequantised(tensors).logits(tokens(20).tolist())
    for tier in TIERS:
        for compute, tolerance in (("fp32", 1e-4), ("int8", 0.1)):
            got = tiny.run(tiny.decoder(SPEC, tensors, tier, compute), tiny.cache(SPEC), tokens(20))
            assert rms(got - exact) <= tolerance * rms(exact)


def test_bf16_weights_read_rounded_inputs():
    """Of int8 compute; 8 bits of mantissa move logits by less than a hundredth, on every tier by nearly the same."""
    tensors = tiny.packed(WEIGHTS, "bf16")
    exact = dequantised(tensors).logits(tokens(40).tolist())
    moved = [tiny.run(tiny.decoder(SPEC, tensors, t, "int8"), tiny.cache(SPEC), tokens(40)) - exact for t in TIERS]
    for difference in moved:
        assert 3e-4 * rms(exact) < rms(difference) < 1e-2 * rms(exact)
        assert rms(difference - moved[0]) < 0.5 * rms(moved[0])


@pytest.mark.parametrize("low_bit", ["sym_int4", "bf16"])
def test_int8_steps_equal_int8_prefill(model, low_bit):
    """Activations are rounded per row, so how rows are batched does not change them."""
    quantised = tiny.decoder(SPEC, tiny.packed(WEIGHTS, low_bit), TIERS[-1], "int8")
    whole = tiny.run(quantised, tiny.cache(SPEC), tokens(60))
    session = tiny.cache(SPEC)
    steps = np.concatenate([tiny.run(quantised, session, tokens(60)[i : i + 1]) for i in range(60)])
    assert_close(steps, whole, 1e-3)


BAD = {
    "token-too-large": (lambda s: [(s[0], np.array([1, 67], np.int32), True)], "67 is outside"),
    "token-negative": (lambda s: [(s[0], np.array([-1], np.int32), True)], "-1 is outside"),
    "no-tokens": (lambda s: [(s[0], np.array([], np.int32), True)], "no tokens"),
    "no-room": (lambda s: [(s[1], tokens(5), True)], "5 tokens after 10 make 15.* 12"),
    "second-part-bad": (lambda s: [(s[0], tokens(5), True), (s[1], tokens(5), True)], "context is 12"),
    "twice": (lambda s: [(s[0], tokens(1), True), (s[0], tokens(1), True)], "two parts"),
    "other-shape": (lambda s: [(ops.kv_cache(2, 2, 16, 8), tokens(1), True)], "does not fit"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_calls_change_nothing(model, case):
    make, message = BAD[case]
    sessions = [tiny.cache(SPEC, 64), tiny.cache(SPEC, 12)]
    for session in sessions:
        tiny.run(model, session, tokens(10))
    with pytest.raises(ValueError, match=message):
        ops.forward(model, make(sessions), POOL)
    assert [s.length for s in sessions] == [10, 10]
    after = tiny.run(model, sessions[0], tokens(20)[10:])
    assert_close(after, tiny.run(model, tiny.cache(SPEC), tokens(20))[10:], 1e-5)


def test_learned_positions_run_out():
    spec = dataclasses.replace(SPEC, ropes=(), layer_rope=(), learned_position_offset=2)
    tensors = tiny.packed(tiny.random_weights(spec, {"position_embedding.weight": (12, 64)}))
    model = tiny.decoder(spec, tensors)
    tiny.run(model, tiny.cache(spec), tokens(10))
    with pytest.raises(ValueError, match="learned positions are 10"):
        tiny.run(model, tiny.cache(spec), tokens(11))


def test_no_parts_no_logits(model):
    assert ops.forward(model, [], POOL).shape == (0, SPEC.vocab_size)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize(
    "where", ["layers.0.attention_norm.weight", "layers.1.qkv.weight", "embedding.weight", "head.weight"]
)
@pytest.mark.parametrize("compute", ["fp32", "int8"])
def test_weights_that_are_not_numbers_do_not_crash(poison, where, compute):
    """NaN reaches the logits of its session; the process, other sessions and later calls are as before."""
    for tier in TIERS:
        tensors = tiny.packed(WEIGHTS, "sym_int4")
        broken = WEIGHTS[where].copy()
        broken[..., 3] = poison
        tensors[where] = broken if broken.ndim == 1 else tiny.packed({where: WEIGHTS[where]}, "fp32")[where]
        if broken.ndim == 2:  # the quantiser refuses such weights, so they are written into the packed bytes
            floats = tensors[where].data.view(np.float32)
            floats[3 * 16 : 3 * 16 + 8] = poison
        model = tiny.decoder(SPEC, tensors, tier, compute)
        tiny.run(model, tiny.cache(SPEC, dtype="fp16"), tokens(70))
        tiny.run(model, tiny.cache(SPEC, dtype="bf16"), tokens(3))
        tiny.run(model, tiny.cache(SPEC, dtype="int16"), tokens(70))
        tiny.run(model, tiny.cache(SPEC, dtype="int8"), tokens(70))


# Pages of these caches are one block of 64 positions, 2 MiB and a bit.
WIDE = dataclasses.replace(
    SPEC, layers=16, kv_heads=8, heads=8, head_dim=64, layer_rope=(), ropes=(), layer_window=()
)  # fmt: skip


@pytest.fixture(scope="module")
def wide():
    return tiny.decoder(WIDE, tiny.packed(tiny.random_weights(WIDE)))


def test_a_cache_costs_what_it_holds(wide):
    """A session takes memory in pages as it grows and gives it back when it is cut."""
    before = resident()
    session = tiny.cache(WIDE, 1 << 20, "fp16")
    assert session.capacity == 1 << 20
    assert ops.kv_bytes([session]) == 0
    assert session.bytes_per_position >= 2 * 2 * 16 * 8 * 64
    assert resident() - before < 4 << 20
    ops.forward(wide, [(tiny.cache(WIDE, dtype="fp16"), tokens(8), False)], POOL)  # scratch and weights
    before = resident()
    ops.forward(wide, [(session, tokens(60), False)], POOL)
    page = ops.kv_bytes([session])
    assert 64 * session.bytes_per_position <= page <= 1.2 * 64 * session.bytes_per_position
    assert resident() - before < 4 * page
    ops.forward(wide, [(session, tokens(140), False)], POOL)
    assert ops.kv_bytes([session]) == 4 * page
    session.truncate(65)
    assert ops.kv_bytes([session]) == 2 * page
    session.truncate(0)
    assert ops.kv_bytes([session]) == 0


def test_forks_share_their_beginning(wide):
    """A fork costs one page at most; it and its origin go on apart, to the same bits as without."""
    origin = tiny.cache(WIDE, 600)
    tiny.run(wide, origin, tokens(300))
    page = ops.kv_bytes([origin]) // 5
    forks = {n: origin.fork(n) for n in (0, 1, 63, 64, 65, 256, 299, 300)}
    for n, fork in forks.items():
        assert (fork.length, fork.capacity) == (n, 600)
        assert ops.kv_bytes([origin, fork]) == (5 + bool(n % 64)) * page
    assert ops.kv_bytes([origin, *forks.values()]) == (5 + sum(bool(n % 64) for n in forks)) * page
    fresh = {}
    for n, fork in forks.items():
        own = np.concatenate([tokens(300)[:n], tokens(80, n + 1)])
        alone = tiny.cache(WIDE, 600)
        tiny.run(wide, alone, own[:n]) if n else None
        fresh[n] = tiny.run(wide, alone, own[n:])
        np.testing.assert_array_equal(tiny.run(wide, fork, own[n:]), fresh[n])
    again = tiny.cache(WIDE, 600)
    tiny.run(wide, again, tokens(300))
    np.testing.assert_array_equal(tiny.run(wide, origin, tokens(20, 2)), tiny.run(wide, again, tokens(20, 2)))


def test_a_cut_origin_does_not_write_into_its_forks(wide):
    origin = tiny.cache(WIDE, 400)
    tiny.run(wide, origin, tokens(200))
    fork, expected = origin.fork(200), origin.fork(200)
    for cut in (128, 100, 3):  # on a border of pages, and inside of a shared one
        origin.truncate(cut)
        tiny.run(wide, origin, tokens(30, 5))
    del origin
    twin = tiny.cache(WIDE, 400)
    tiny.run(wide, twin, tokens(200))
    step = tiny.run(wide, twin, tokens(9, 3))
    np.testing.assert_array_equal(tiny.run(wide, fork, tokens(9, 3)), step)
    np.testing.assert_array_equal(tiny.run(wide, expected, tokens(9, 3)), step)
    for bad in (-1, 210):
        with pytest.raises(ValueError, match="cannot fork"):
            fork.fork(bad)


def resident() -> int:
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * resource.getpagesize()


def test_cache_arguments():
    for bad in ((0, 1, 1, 1), (1, 0, 1, 1), (1, 1, 0, 1), (1, 1, 1, 0), (-1, 1, 1, 1)):
        with pytest.raises(ValueError, match="at least 1"):
            ops.kv_cache(*bad)
    with pytest.raises(ValueError, match="fp32, fp16, bf16"):
        ops.kv_cache(1, 1, 1, 1, "int3")
    with pytest.raises(MemoryError):
        ops.kv_cache(1 << 30, 1 << 30, 1 << 30, 1 << 30)
    with pytest.raises(MemoryError):
        ops.kv_cache(1, 1, 1, 1 << 40)
    session = tiny.cache(SPEC, 8)
    for bad_length in (-1, 1):
        with pytest.raises(ValueError, match="cannot truncate"):
            session.truncate(bad_length)


def test_profile_names_phases(model):
    model.profile(True)
    tiny.run(model, tiny.cache(SPEC), tokens(10))
    seconds = model.phase_seconds()
    model.profile(False)
    assert set(seconds) == {"embed", "norm", "qkv", "rotate", "attention", "o", "up", "activate", "down", "head"}
    assert all(value > 0 for value in seconds.values())
    assert sum(model.phase_seconds().values()) == 0
