"""Generation with the native engine on trained models: the embedded one, and those beside the repository."""

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest

import lowbit
from lowbit.generate import Generator, Request
from lowbit.sampling import GenerationOptions
from shared_data import shared
from stop_reference import cut

MODELS = ["demo", "stories260k", "zh-poem-llama", "shakespeare-char-gpt2", "shakespeare-char-opt"]
PROMPTS = {
    "zh-poem-llama": ["春", "明月", "山中何", "白日依"],
    None: ["Once upon a time", "The", "One day, a", "She was so h"],
}


def folder(name):
    if name != "demo":
        return shared("models", name)
    path = Path(__file__).parents[2] / "demo" / "model"
    if not (path / "config.json").exists():
        pytest.skip("the embedded model is not in this checkout yet")
    return path


@pytest.fixture(scope="module", params=MODELS)
def source(request):
    return folder(request.param)


@pytest.fixture(scope="module")
def model(source):
    return lowbit.load(source, "sym_int4", device="cpu", threads=1)


@pytest.fixture(scope="module")
def prompts(source):
    return PROMPTS.get(source.name, PROMPTS[None])


def ids_of(generator, prompt, **options):
    request = Request(prompt, GenerationOptions.resolve(options))
    return [e.token for e in generator.start([request])]


def test_a_batch_equals_its_single_prompts(model, prompts):
    for options in ({}, {"temperature": 1.0, "seed": 3}, {"repetition_penalty": 1.3}, {"stop": ["e", "\n", "一"]}):
        together = model.generate(prompts, max_new_tokens=24, **options)
        alone = [model.generate(p, max_new_tokens=24, **options) for p in prompts]
        assert [(c.text, c.token_ids, c.finish_reason) for c in together] == [
            (c.text, c.token_ids, c.finish_reason) for c in alone
        ]


def test_chunks_batches_and_reuse_do_not_change_the_tokens(model, prompts):
    engine = model.generator.engine
    ids = np.array(model.encode(prompts[0]) * 20, np.int32)[: engine.context // 2]
    fresh = ids_of(Generator(engine, idle_sessions=0), ids, max_new_tokens=16)
    assert ids_of(Generator(engine, idle_sessions=0, prefill_chunk=5), ids, max_new_tokens=16) == fresh
    kept = Generator(engine)
    ids_of(kept, [*ids[:-3], 5, 6, 7], max_new_tokens=8)
    batch = kept.start([Request(ids, GenerationOptions.resolve(max_new_tokens=16))])
    assert [e.token for e in batch] == fresh
    assert batch.cached_tokens(0) == len(ids) - 3


@pytest.mark.parametrize("format", ["sym_int4", "asym_int5", "sym_int8", "nf4", "fp6", "fp8_e4m3", "fp16"])
def test_logits_do_not_depend_on_who_else_is_in_the_pass(source, format):
    """What makes a batch equal its single prompts, and a reused session a fresh one: equal bits, in every format."""
    engine = lowbit.load(source, format, device="cpu", threads=1).generator.engine
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, engine.vocab_size, n).astype(np.int32) for n in (20, 7, 33, 1, 15, 9, 28, 16, 12)]
    alone = [engine.forward([(engine.new_cache(engine.context), p, False)])[0] for p in prompts]
    together = engine.forward([(engine.new_cache(engine.context), p, False) for p in prompts])
    np.testing.assert_array_equal(together, np.stack(alone))
    for expected, prompt in zip(alone, prompts, strict=True):
        cache = engine.new_cache(engine.context)
        for start in range(0, len(prompt), 6):
            logits = engine.forward([(cache, prompt[start : start + 6], False)])
        np.testing.assert_array_equal(logits[0], expected)


def test_an_int8_cache_serves_batches_reuse_and_speculation(source, prompts):
    """Everything that sessions do, on a cache of 8 bits: the same tokens however they are computed."""
    model = lowbit.load(source, "sym_int4", device="cpu", threads=1, kv_dtype="int8")
    halves = lowbit.load(source, "sym_int4", device="cpu", threads=1)
    assert model.memory()["token_bytes"] < halves.memory()["token_bytes"]
    test_a_batch_equals_its_single_prompts(model, prompts)
    test_chunks_batches_and_reuse_do_not_change_the_tokens(model, prompts)
    quoting = (model.encode(prompts[0]) * 20)[: model.context // 2]
    plain, guessed = (model.generate(quoting, max_new_tokens=24, temperature=0, speculate=s) for s in (False, True))
    assert plain.token_ids == guessed.token_ids
    ids = np.array(quoting[: model.context // 4], np.int32)
    ours, exact = model.logits(ids), halves.logits(ids)
    assert np.abs(ours - exact).max() < 0.05 * np.ptp(exact)


def test_the_context_may_be_filled_to_its_end(model, prompts):
    context = model.context
    prompt = (model.encode(prompts[0]) * context)[: context - 4]
    done = model.generate(prompt, max_new_tokens=100, ignore_eos=True)
    assert (done.completion_tokens, done.finish_reason) == (4, "length")
    with pytest.raises(ValueError, match=f"has {context} tokens, the context is {context}"):
        model.generate([*prompt, 5, 5, 5, 5])


def test_streams_join_and_threads_agree(source, model, prompts):
    expected = {p: model.generate(p, max_new_tokens=20).text for p in prompts}
    shared_pool = lowbit.load(source, "sym_int4", device="cpu", threads=2)
    results, errors = {}, []

    def work(i):
        try:
            prompt = prompts[i % len(prompts)]
            for _ in range(2):
                results.setdefault(prompt, set()).add(
                    "".join(d.text for d in shared_pool.stream(prompt, max_new_tokens=20))
                )
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert not errors
    assert results == {p: {text} for p, text in expected.items()}


async def test_async_calls_agree(model, prompts):
    async def one(prompt):
        return "".join([d.text async for d in model.astream(prompt, max_new_tokens=12)])

    assert await asyncio.gather(*map(one, prompts)) == [
        c.text for c in await model.agenerate(prompts, max_new_tokens=12)
    ]


def test_any_piece_of_the_text_may_be_a_stop_string(model, prompts):
    """Pieces cross token borders everywhere; the text must end just before, streamed or not."""
    whole = model.generate(prompts[0], max_new_tokens=32).text
    rng = np.random.default_rng(0)
    for _ in range(12):
        start = int(rng.integers(len(whole)))
        stop = whole[start : start + int(rng.integers(1, 6))]
        expected, _ = cut(whole, [stop])
        done = model.generate(prompts[0], max_new_tokens=32, stop=stop)
        assert (done.text, done.finish_reason) == (expected, "stop")
        assert "".join(d.text for d in model.stream(prompts[0], max_new_tokens=32, stop=stop)) == expected


def test_low_bit_folder_gives_the_same_text(model, prompts, tmp_path):
    model.save_low_bit(tmp_path / "saved")
    again = lowbit.load(tmp_path / "saved", device="cpu", threads=1)
    assert [c.text for c in again.generate(prompts, max_new_tokens=20)] == [
        c.text for c in model.generate(prompts, max_new_tokens=20)
    ]


@pytest.mark.torch
@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_are_those_of_transformers(name):
    path = folder(name)
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)  # two spinning pools on the same cores only wait for each other
    ours = lowbit.load(path, None, device="cpu", threads=1, compute="fp32", kv_dtype="fp32")
    theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    for options in ({}, {"repetition_penalty": 1.3}, {"min_new_tokens": 20}, {"eos_token_id": [15, 16, 17]}):
        for prompt in PROMPTS.get(name, PROMPTS[None]):
            ids = torch.tensor([ours.encode(prompt)])
            with torch.inference_mode():
                expected = theirs.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=False,
                    max_new_tokens=40,
                    pad_token_id=0,
                    **options,
                )
            got = ours.generate(prompt, max_new_tokens=40, **options)
            assert list(got.token_ids) == expected[0, ids.shape[1] :].tolist(), (prompt, options)
