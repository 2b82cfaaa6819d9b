"""Prompt-lookup speculation: drafts, what they save, and that no token ever changes."""

from pathlib import Path

import numpy as np
import pytest

import lowbit
import toy
from lowbit.generate import Generator, Request
from lowbit.sampling import GenerationOptions
from lowbit.speculation import LONGEST_PAUSE, Lookup, lookup

QUOTED = [9, 8, 7, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 5, 6]


def request(prompt, allowed=None, **options):
    return Request(prompt, GenerationOptions.resolve({"max_new_tokens": 40}, options), (), allowed)


def tokens(generator, *args, **options):
    return [(e.token, e.logprob, e.finish_reason) for e in generator.start([request(*args, **options)])]


def quoting(ids):
    """Answers by what followed the last token in the prompt, else by something new."""
    for i in range(len(QUOTED) - 1):
        if QUOTED[i] == ids[-1]:
            return toy.favour(QUOTED[i + 1])
    return toy.favour(QUOTED[0] if len(ids) % 5 == 0 else 100 + len(ids) % 100)


def looping(ids):
    """Nearly periodic: drafts are often right and often wrong after a few tokens."""
    return toy.favour((ids[-1] * 5 + (len(ids) % 17 == 0)) % 11)


@pytest.mark.parametrize(
    ("ids", "length", "expected"),
    [
        ([1, 2, 3, 4, 1, 2], 2, [3, 4]),
        ([1, 2, 3, 4, 1, 2], 9, [3, 4, 1, 2]),
        ([1, 2, 3, 9, 2, 4, 1, 2], 1, [3]),  # two tokens alike beat one
        ([1, 2, 3, 1, 2, 4, 1, 2], 1, [4]),  # the latest place
        ([7, 1, 2, 3, 5, 1, 2, 4, 7, 1, 2], 1, [3]),  # the longest agreement
        ([2, 3, 4, 2], 3, []),  # one token alike is not enough
        ([1, 2, 3], 3, []),
        ([5], 3, []),
        ([5, 5], 3, []),
        ([5, 5, 5, 5], 3, [5]),
        ([], 3, []),
    ],
)
def test_lookup(ids, length, expected):
    assert lookup(np.array(ids, np.int32), length).tolist() == expected


@pytest.mark.parametrize("logits", [quoting, looping, toy.babble(), toy.babble(memory=1)])
@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.7, "seed": 5}, {"repetition_penalty": 1.2, "logprobs": 0}, {"max_new_tokens": 3}],
)
def test_no_token_changes(logits, options):
    for prompt in (QUOTED, [1, 2] * 12, [3]):
        plain = tokens(Generator(toy.ToyEngine(logits)), prompt, **options)
        for exact in (2, 4, 8):
            generator = Generator(toy.ToyEngine(logits, exact_tokens=exact))
            assert tokens(generator, prompt, speculate=True, **options) == plain
            # what the session keeps is what was said, not what was guessed
            follow_up = [*prompt, *(t for t, _, _ in plain), 3]
            assert tokens(generator, follow_up, speculate=True, **options) == tokens(
                Generator(toy.ToyEngine(logits)), follow_up, **options
            )


def test_constraints_see_every_choice_in_turn():
    seen = []

    def only_odd(output):
        seen.append(output.tolist())
        return np.full((toy.VOCAB + 31) // 32, 0xAAAAAAAA, np.uint32)

    plain = tokens(Generator(toy.ToyEngine(quoting)), QUOTED, only_odd)
    expected, seen = seen, []
    assert tokens(Generator(toy.ToyEngine(quoting, exact_tokens=8)), QUOTED, only_odd) == plain
    assert seen == expected
    assert [len(output) for output in seen] == list(range(40))


def test_an_answer_that_quotes_takes_fewer_passes():
    engine = toy.ToyEngine(quoting, exact_tokens=8)
    tokens(Generator(engine), [*QUOTED, 9, 8, 7])
    assert len(engine.passes) < 40 / 2
    engine.passes.clear()
    tokens(Generator(engine), [*QUOTED, 9, 8, 7], speculate=False)
    assert len(engine.passes) == 40


def test_sampling_speculates_only_when_asked():
    for speculate, most in ((None, 1), (True, 8)):
        engine = toy.ToyEngine(quoting, exact_tokens=8)
        tokens(Generator(engine), QUOTED, temperature=0.5, seed=1, speculate=speculate)
        assert max(n for p in engine.passes[1:] for n in p) == most


def test_drafts_that_do_not_pay_stop():
    """1 2 a 1 2 b 1 2 c: what followed the last 1 2 never comes again. The longer that goes on, the fewer drafts."""
    new = np.random.default_rng(0).integers(3, 256, 3100)
    engine = toy.ToyEngine(lambda ids: toy.favour((1, 2, new[len(ids)])[len(ids) % 3]), context=4096, exact_tokens=8)
    tokens(Generator(engine), [5], max_new_tokens=3000)
    drafted = [sum(p) - 1 for p in engine.passes]
    assert sum(drafted[:30]) > 3
    assert sum(drafted) < 0.03 * 3000


def test_a_lookup_learns():
    ids, good = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2], np.int32), Lookup(7)
    assert good.draft(ids, 100).size == 4
    good.learn(4, 4)
    assert good.draft(ids, 100).size == 7
    assert good.draft(ids, 2).size == 2
    assert good.draft(ids, 0).size == 0
    bad, pauses = Lookup(7), []
    while len(pauses) < 8:
        draft = bad.draft(ids, 100)
        bad.learn(draft.size, 0)
        pauses.append(0)
        while not bad.draft(ids, 100).size:
            pauses[-1] += 1
    assert pauses == [4, 8, 16, 32, 64, LONGEST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE]


def test_rows_that_share_a_pass_do_not_speculate():
    engine = toy.ToyEngine(quoting, exact_tokens=8)
    list(Generator(engine).start([request([*QUOTED, 9, 8, n]) for n in (7, 6)]))
    assert all(n == 1 for p in engine.passes[1:] if len(p) > 1 for n in p)


def test_native_logits_after_drafts_are_those_of_single_steps():
    """The promise behind `exact_tokens`, beyond the first span of keys, where attention cuts its sums."""
    path = Path(__file__).parents[2] / "demo" / "model"
    if not (path / "config.json").exists():
        pytest.skip("the embedded model is not in this checkout yet")
    model = lowbit.load(path, "sym_int4", device="cpu", threads=2)
    engine = model.generator.engine
    assert engine.exact_tokens > 1
    ids = np.random.default_rng(0).integers(0, engine.vocab_size, 700).astype(np.int32)
    cache = engine.new_cache(engine.capacity(700))
    engine.forward([(cache, ids[:490], False)])
    twin = cache.fork(490)
    single = [engine.forward([(cache, ids[i : i + 1], False)])[0] for i in range(490, 690)]
    n = engine.exact_tokens
    together = [engine.forward([(twin, ids[i : i + n], True)]) for i in range(490, 690 - n + 1, n)]
    together = np.concatenate(together)
    np.testing.assert_array_equal(together, single[: len(together)])
    prompt = "The cat sat on the mat. The dog sat on the log. " * 4
    for options in ({}, {"temperature": 1.0, "seed": 3}, {"repetition_penalty": 1.1}):
        plain = model.generate(prompt, max_new_tokens=60, speculate=False, **options)
        assert model.generate(prompt, max_new_tokens=60, speculate=True, **options).token_ids == plain.token_ids
