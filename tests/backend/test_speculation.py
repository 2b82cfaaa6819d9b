"""Speculation, from the prompt and by a draft model: drafts, what they save, and that no token ever changes."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models

import lowbit
import toy
from lowbit.generate import Generator, Request
from lowbit.sampling import GenerationOptions
from lowbit.sessions import SessionPool
from lowbit.speculation import CATCH_UP, LONGEST_PAUSE, DraftModel, Lookup, SteadyPace, lookup
from lowbit.text import TextModel
from lowbit.tokenizer import Tokenizer

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


@pytest.mark.parametrize("cost", [0.2, 0.57])
@pytest.mark.parametrize("agree", [0.0, 0.5, 0.7, 0.9, 1.0])
def test_a_steady_pace_finds_the_length_that_pays(agree, cost):
    """Tokens per step's time are near those of the best fixed length, 1 without drafts."""
    best = max(sum(agree**i for i in range(n + 1)) / (1 + cost * n) for n in range(8))
    pace, rng, spent, tokens = SteadyPace(7, cost), np.random.default_rng(0), 0.0, 0
    while tokens < 5000:
        drafted = pace.length(7)
        accepted = next((i for i in range(drafted) if rng.random() >= agree), drafted)
        spent += 1 + cost * drafted
        tokens += accepted + 1
        if drafted:
            pace.learn(drafted, accepted)
    assert tokens / spent > 0.92 * best


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


# ---- draft models ----------------------------------------------------------------------------------------------


def with_draft(logits, guesses, exact=8, cost=0.1, context=512, **draft):
    """A generator over one toy engine that another drafts for, and both engines."""
    engine, small = toy.ToyEngine(logits, exact_tokens=exact, context=context), toy.ToyEngine(guesses, **draft)
    generator = Generator(engine, draft_model=DraftModel(small, SessionPool(small), toy.VOCAB, cost))
    return generator, engine, small


def often_wrong(logits):
    """A draft model that agrees with another three times out of four."""
    return lambda ids: logits(ids) if len(ids) % 4 else toy.favour(len(ids) % 200)


@pytest.mark.parametrize("logits", [quoting, looping, toy.babble(), toy.babble(memory=1)])
@pytest.mark.parametrize("guess", [lambda logits: logits, often_wrong, lambda _: toy.babble(seed=1)])
@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.7, "seed": 5}, {"repetition_penalty": 1.2, "logprobs": 0}, {"max_new_tokens": 3}],
)
def test_no_token_changes_by_a_draft_model(logits, guess, options):
    for prompt in (QUOTED, [3]):
        plain = tokens(Generator(toy.ToyEngine(logits)), prompt, **options)
        for exact in (1, 8):
            generator, _, small = with_draft(logits, guess(logits), exact)
            assert tokens(generator, prompt, **options) == plain
            follow_up = [*prompt, *(t for t, _, _ in plain), 3]
            assert tokens(generator, follow_up, **options) == tokens(
                Generator(toy.ToyEngine(logits)), follow_up, **options
            )
            assert bool(small.passes) == (exact > 1)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "seed": 11}])
def test_a_good_draft_model_saves_passes(options):
    """Also when sampling: the draws of both models are coupled, so models that nearly agree mostly draw alike."""
    unsure, sure = toy.babble(), lambda ids: toy.favour((ids[-1] * 7 + 3) % 251)
    for logits, most in ((unsure, 0.6), (sure, 0.2)):
        generator, engine, small = with_draft(logits, lambda ids, logits=logits: logits(ids) * 1.02)
        tokens(generator, [5, 6, 7], max_new_tokens=200, **options)
        assert len(engine.passes) < most * 200
        assert sum(n for p in small.passes for n in p) < 300  # what it has read it does not read again


def test_a_bad_draft_model_is_soon_asked_less():
    generator, engine, small = with_draft(toy.babble(), toy.babble(seed=1), context=4096)
    small.context = 4096
    tokens(generator, [5], max_new_tokens=1000)
    assert len(engine.passes) == 1000
    assert 3 < len(small.passes) < 100


def test_a_draft_model_reads_a_long_prompt_in_pieces_beside_the_steps():
    generator, engine, small = with_draft(looping, looping, context=4096)
    small.context = 4096
    tokens(generator, [1, 2, 3, 5, 7] * 100, max_new_tokens=60)
    assert max(n for p in small.passes for n in p) <= CATCH_UP
    assert max(n for p in engine.passes for n in p) == 128  # the first token did not wait for it
    assert len(engine.passes) < 40


def test_a_second_question_finds_the_draft_models_cache():
    generator, _, small = with_draft(looping, looping)
    prompt = [1, 2, 3, 5, 7] * 10
    tokens(generator, prompt, speculate=None, temperature=0.0)
    small.passes.clear()
    tokens(generator, [*prompt, 9], max_new_tokens=8)
    assert small.passes[0][0] < len(prompt)


def test_a_draft_model_with_fewer_tokens_or_a_shorter_context():
    logits = toy.babble(memory=1)
    plain = tokens(Generator(toy.ToyEngine(logits)), [5], temperature=1.0, seed=1)
    few = lambda ids: logits([i % 200 for i in ids])[:200]  # noqa: E731
    generator, _, small = with_draft(logits, few, vocab_size=200)
    assert tokens(generator, [5], temperature=1.0, seed=1) == plain
    assert small.passes
    generator, _, small = with_draft(logits, logits)
    small.context = 30
    assert tokens(generator, [5], temperature=1.0, seed=1) == plain
    assert not small.passes


def test_a_draft_model_that_breaks_costs_no_answer(caplog):
    def broken(ids):
        if len(ids) > 12:
            raise MemoryError("no room for a second cache")
        return looping(ids)

    plain = tokens(Generator(toy.ToyEngine(looping)), [1, 2, 3])
    generator, _, small = with_draft(looping, broken)
    assert tokens(generator, [1, 2, 3]) == plain
    assert "the draft model failed" in caplog.text
    assert not small.in_use
    assert tokens(generator, [1, 2, 3]) == plain


def test_a_loaded_model_with_a_draft_model():
    path = Path(__file__).parents[2] / "demo" / "model"
    plain = lowbit.load(path, "sym_int8", device="cpu", threads=2)
    assisted = lowbit.load(path, "sym_int8", draft_model=path, device="cpu", threads=2)
    assisted.generator._draft_model.cost = 0.05  # it is no smaller than the model, so its guesses would not pay
    passes = count_passes(assisted.generator.engine)
    for options in ({}, {"temperature": 1.0, "seed": 3}, {"regex": "[a-z ]+", "max_new_tokens": 20}):
        options = {"max_new_tokens": 60, "speculate": None, **options}
        expected = plain.generate("Once upon a time", **{**options, "speculate": False})
        passes.clear()
        assert assisted.generate("Once upon a time", **options).token_ids == expected.token_ids
        assert len(passes) < 0.6 * len(expected.token_ids)
    assert lowbit.load(path, "sym_int8", draft_model=assisted, threads=2).draft_model is assisted


def count_passes(engine):
    """A list that gets an item for every pass of a native engine from now on."""
    passes, forward = [], engine.forward
    engine.forward = lambda parts: passes.append(len(parts)) or forward(parts)
    return passes


def test_draft_models_of_text_models():
    big = toy.text_model({"Hi": "a long answer, and on"}, exact_tokens=8)
    small = toy.text_model({"Hi": "a long answer"})
    parts = {"engine": big.generator.engine, "tokenizer": big.tokenizer}
    assisted = TextModel(big.loaded, big.runtime, draft_model=small, **parts)
    assert assisted.draft_model is small
    assert assisted.generate("Hi").text == "a long answer, and on"
    assert small.generator.engine.passes
    assert small.memory()["idle_sessions"] == 1  # its caches are in its own account
    other = toy.byte_tokenizer()
    other.backend.add_tokens(["an added token is no other vocabulary"])
    TextModel(big.loaded, big.runtime, draft_model=small, **{**parts, "tokenizer": other})
    stranger = SimpleNamespace(tokenizer=Tokenizer(Backend(models.BPE({"x": 0}, [])), {}, {}), model_id="x")
    with pytest.raises(ValueError, match="another vocabulary"):
        TextModel(big.loaded, big.runtime, draft_model=stranger, **parts)
