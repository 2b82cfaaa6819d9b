"""The native sampler against numpy, against the distribution it should draw from, and (torch) against transformers."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit import ops

NONE = np.empty(0, np.int32)
DEFAULTS = dict(
    temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0,
    top_logprobs=-1, prompt=NONE, output=NONE, mask=None, seed=0, position=0,
)  # fmt: skip


def sample(logits, **options):
    return ops.sample(np.array(logits, np.float32), **{**DEFAULTS, **options})


def ids(*values):
    return np.array(values, np.int32)


def bits(allowed):
    words = np.packbits(np.asarray(allowed, bool), bitorder="little")
    return np.pad(words, (0, -len(words) % 4)).view(np.uint32)


def distribution(logits, options):
    """The reference: probabilities [vocab] in numpy, by full sorts, in the order the header states."""
    x = np.array(logits, np.float32)
    for token in {int(t) for t in (*options["prompt"], *options["output"]) if 0 <= t < len(x)}:
        p = np.float32(options["repetition_penalty"])
        x[token] = x[token] * p if x[token] < 0 else x[token] / p
    for token in {int(t) for t in options["output"] if 0 <= t < len(x)}:
        count = np.float32(np.sum(options["output"] == token))
        x[token] -= np.float32(options["presence_penalty"]) + np.float32(options["frequency_penalty"]) * count
    if options["mask"] is not None:
        allowed = np.unpackbits(options["mask"].view(np.uint8), bitorder="little")[: len(x)].astype(bool)
        x[~allowed] = -np.inf
    if options["temperature"] == 0:
        return np.eye(len(x))[int(np.argmax(x))]
    if 0 < options["top_k"] < len(x):
        x[x < np.sort(x)[-options["top_k"]]] = -np.inf
    x = (x.astype(np.float64) - x.max()) / np.float64(np.float32(options["temperature"]))
    order = np.lexsort((np.arange(len(x)), -x))
    p = np.exp(x[order])
    if options["top_p"] < 1:
        above = np.cumsum(p) - p
        drop = above >= np.float64(np.float32(options["top_p"])) * p.sum()
        drop[0] = False
        x[order[drop]] = -np.inf
    if options["min_p"] > 0:
        x[x < math.log(np.float64(np.float32(options["min_p"])))] = -np.inf
    p = np.exp(x)
    return p / p.sum()


@st.composite
def cases(draw):
    vocab = draw(st.integers(1, 90))
    # Few distinct values make ties, which is where orders matter.
    values = st.one_of(st.integers(-4, 4).map(float), st.floats(-30, 30, width=32), st.just(-math.inf))
    logits = draw(st.lists(values, min_size=vocab, max_size=vocab))
    if all(v == -math.inf for v in logits):
        logits[draw(st.integers(0, vocab - 1))] = 0.0
    token = st.integers(-1, vocab + 2)
    options = dict(
        DEFAULTS,
        temperature=draw(st.sampled_from([0.0, 0.1, 0.7, 1.0, 2.5])),
        top_k=draw(st.sampled_from([0, 1, 2, 5, 50, 1000])),
        top_p=draw(st.sampled_from([1e-6, 0.1, 0.5, 0.9, 0.999, 1.0])),
        min_p=draw(st.sampled_from([0.0, 0.05, 0.5, 1.0])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.3, 0.7])),
        presence_penalty=draw(st.sampled_from([0.0, 0.5, -0.5])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.25, -0.25])),
        prompt=ids(*draw(st.lists(token, max_size=6))),
        output=ids(*draw(st.lists(token, max_size=6))),
        seed=draw(st.integers(0, 2**64 - 1)),
        position=draw(st.integers(0, 1000)),
    )
    if draw(st.booleans()):
        allowed = np.array(draw(st.lists(st.booleans(), min_size=vocab, max_size=vocab)))
        allowed[int(np.argmax(logits))] = True
        options["mask"] = bits(allowed)
    return np.array(logits, np.float32), options


@settings(max_examples=400, deadline=None)
@given(cases())
def test_equals_numpy(case):
    logits, options = case
    p = distribution(logits, options)
    token, logprob, alternatives = sample(logits, **options)
    assert math.isnan(logprob)
    assert alternatives == []
    # Inverse of the cumulative distribution in the order of ids; a draw within rounding of a border may fall on either
    # side.
    u = ops.uniform_draw(options["seed"], options["position"])
    cumulative = np.cumsum(p)
    assert p[token] > 0
    assert cumulative[token] - p[token] - 1e-9 <= u <= cumulative[token] + 1e-9


@pytest.mark.parametrize(
    "options", [{}, {"top_k": 50}, {"top_p": 0.9}, {"min_p": 0.02}, {"top_k": 20000, "top_p": 0.8}]
)
def test_large_vocabulary(options):
    rng = np.random.default_rng(1)
    for position in range(20):
        logits = (rng.normal(0, 3, 151_936)).astype(np.float32)
        full = {**DEFAULTS, **options, "seed": 5, "position": position}
        cumulative = np.cumsum(distribution(logits, full))
        u = ops.uniform_draw(5, position)
        assert sample(logits, **full)[0] == np.searchsorted(cumulative, u, side="right")


def test_greedy_ties_take_the_lowest_id():
    assert sample([1, 3, 3, 2], temperature=0.0)[0] == 1
    assert sample([0.0] * 1000, temperature=0.0)[0] == 0


def test_uniform_draws_are_uniform():
    draws = np.array([ops.uniform_draw(seed, position) for seed in range(100) for position in range(100)])
    assert 0 <= draws.min() < 0.001
    assert 0.999 < draws.max() < 1
    counts = np.histogram(draws, 64, (0, 1))[0]
    assert np.sum((counts - 10_000 / 64) ** 2 / (10_000 / 64)) < 120  # chi-square, 63 degrees: p = 2e-5
    table = draws.reshape(100, 100)
    for other in (np.roll(table, 1, axis=0), np.roll(table, 1, axis=1), np.roll(table, (1, -1), axis=(0, 1))):
        assert abs(np.corrcoef(table.ravel(), other.ravel())[0, 1]) < 0.05


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 7},
        {"top_p": 0.7},
        {"min_p": 0.1},
        {"temperature": 2.0, "top_k": 20, "top_p": 0.9},
    ],
)
def test_draws_follow_the_distribution(options):
    logits = np.random.default_rng(3).normal(0, 1.5, 30).astype(np.float32)
    expected = distribution(logits, {**DEFAULTS, **options})
    n = 20_000
    counts = np.bincount([sample(logits, **options, seed=11, position=i)[0] for i in range(n)], minlength=30)
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    chi = np.sum((counts[kept] - n * expected[kept]) ** 2 / (n * expected[kept]))
    freedom = kept.sum() - 1
    assert chi < freedom + 5 * math.sqrt(2 * freedom) + 5


def test_the_seed_and_the_position_fix_the_draw():
    logits = np.random.default_rng(0).normal(0, 1, 500)
    a = [sample(logits, seed=1, position=i)[0] for i in range(50)]
    assert a == [sample(logits, seed=1, position=i)[0] for i in range(50)]
    assert a != [sample(logits, seed=2, position=i)[0] for i in range(50)]


def test_logprobs_are_of_the_unmodified_distribution():
    logits = np.array([0.5, 2.0, -1.0, 2.0, -math.inf], np.float32)
    p = np.exp(logits - logits.max())
    with np.errstate(divide="ignore"):
        expected = np.log(p / p.sum())
    token, logprob, alternatives = sample(
        logits,
        temperature=0.0,
        top_logprobs=3,
        mask=bits([True, False, True, False, True]),
        repetition_penalty=5.0,
        prompt=ids(0),
    )
    assert token == 0
    assert logprob == pytest.approx(expected[0], abs=1e-6)
    assert [i for i, _ in alternatives] == [1, 3, 0]
    assert [v for _, v in alternatives] == pytest.approx(expected[[1, 3, 0]], abs=1e-6)
    assert sample(logits, top_logprobs=0)[2] == []
    assert len(sample(logits, top_logprobs=99)[2]) == 4  # a forbidden token has no log-probability to speak of


@pytest.mark.parametrize(("value", "word"), [(math.nan, "NaN"), (math.inf, "infinity")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_logits_are_an_error(value, word, temperature):
    logits = np.zeros(100, np.float32)
    logits[37] = value
    with pytest.raises(ValueError, match=f"token 37 is .*{word}"):
        sample(logits, temperature=temperature)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_token_left_is_an_error(temperature):
    with pytest.raises(ValueError, match="no token is left"):
        sample([1.0, 2.0], temperature=temperature, mask=bits([False, False]))
    with pytest.raises(ValueError, match="no token is left"):
        sample([-math.inf] * 3, temperature=temperature)


def test_a_mask_of_another_size_is_an_error():
    with pytest.raises(ValueError, match="mask needs 2 words"):
        sample([0.0] * 40, mask=np.zeros(1, np.uint32))


def test_extreme_temperatures():
    logits = [0.0, 80.0, 79.0]
    assert {sample(logits, temperature=1e-30, position=i)[0] for i in range(50)} == {1}
    assert {sample(logits, temperature=1e30, position=i)[0] for i in range(200)} == {0, 1, 2}


@pytest.mark.torch
@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_filters_are_those_of_transformers(penalty):
    import torch
    from transformers.generation import logits_process as hf

    rng = np.random.default_rng(7)
    for _ in range(20):
        logits = rng.normal(0, 2, 200).astype(np.float32)
        prompt, output = rng.integers(0, 200, 12).astype(np.int32), rng.integers(0, 200, 8).astype(np.int32)
        steps = [
            hf.RepetitionPenaltyLogitsProcessor(penalty), hf.TemperatureLogitsWarper(0.7), hf.TopKLogitsWarper(40),
            hf.TopPLogitsWarper(0.85), hf.MinPLogitsWarper(0.03),
        ]  # fmt: skip
        scores = torch.from_numpy(logits[None].copy())
        seen = torch.from_numpy(np.concatenate([prompt, output])[None].astype(np.int64))
        for step in steps:
            scores = step(seen, scores)
        expected = torch.softmax(scores[0].double(), -1).numpy()
        options = dict(
            temperature=0.7, top_k=40, top_p=0.85, min_p=0.03, repetition_penalty=penalty, prompt=prompt, output=output
        )
        np.testing.assert_allclose(distribution(logits, {**DEFAULTS, **options}), expected, atol=1e-5)
        drawn = {sample(logits, **options, position=i)[0] for i in range(3000)}
        assert drawn <= set(np.flatnonzero(expected))
        assert drawn >= set(np.flatnonzero(expected > 0.01))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from([-math.inf, -3.4e38, -1.0, 0.0, 1e-38, 3.4e38]), min_size=1, max_size=40),
    st.sampled_from([0.0, 1e-38, 1.0, 3e38]),
    st.sampled_from([0, 1, 3, 2**31 - 1]),
    st.sampled_from([1e-30, 0.5, 0.99999994, 1.0]),
    st.sampled_from([0.0, 1e-30, 1.0]),
    st.sampled_from([1e-38, 1.0, 1e38]),
    st.lists(st.integers(0, 40), max_size=5),
)
def test_no_extreme_breaks_the_choice(logits, temperature, top_k, top_p, min_p, penalty, seen):
    """A penalty may overflow a logit; it must not forbid the token, make it certain or crash."""
    options = dict(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty)
    if max(logits) == -math.inf:
        with pytest.raises(ValueError, match="no token is left"):
            sample(logits, **options, output=ids(*seen))
    else:
        token, *_ = sample(logits, **options, output=ids(*seen), presence_penalty=2.0, frequency_penalty=-2.0)
        assert logits[token] > -math.inf
