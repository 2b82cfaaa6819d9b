"""TextModel over a toy engine: streams, completions, stops, batches, threads, cancellation, async."""

import asyncio
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import toy


def joined(deltas):
    deltas = list(deltas)
    assert all(d.finish_reason is None for d in deltas[:-1])
    return "".join(d.text for d in deltas), deltas[-1].finish_reason


def test_a_stream_joins_to_the_completion():
    model = toy.text_model({"hi": "hello wörld 你好 🙂"})
    deltas = list(model.stream("hi"))
    done = model.generate("hi")
    assert joined(deltas) == ("hello wörld 你好 🙂", "stop")
    assert done.text == "hello wörld 你好 🙂"
    assert done.finish_reason == "stop"
    assert done.prompt_tokens == 3
    assert done.completion_tokens == len(done.text.encode()) + 1 == len(done.token_ids)
    assert tuple(i for d in deltas for i in d.token_ids) == done.token_ids
    assert all("\ufffd" not in d.text for d in deltas)
    assert deltas[-1].completion_tokens == done.completion_tokens


def test_prompts_may_be_text_or_ids():
    model = toy.text_model({"hi": "yes"})
    ids = [toy.BOS, *b"hi"]
    for prompt in ("hi", ids, tuple(ids), np.array(ids), np.array(ids, np.int64)):
        assert model.generate(prompt).text == "yes"
    both = model.generate(["hi", ids])
    assert [c.text for c in both] == ["yes", "yes"]
    assert model.generate([]) == []
    assert [c.text for c in model.generate(np.array([ids, ids]))] == ["yes", "yes"]


@pytest.mark.torch
def test_prompts_may_be_tensors():
    import torch

    model = toy.text_model({"hi": "yes"})
    ids = torch.tensor([toy.BOS, *b"hi"])
    assert model.generate(ids).text == "yes"
    assert [c.text for c in model.generate(ids[None])] == ["yes"]


@pytest.mark.parametrize("stop", ["?", "**", ".", "a.b", "(", "\\", "wö", "h", "hello", ["zz", "lo"], "d 你"])
def test_stop_strings_are_literal_and_removed_in_every_mode(stop):
    reply = "hello wörld 你好 ?? ** a.b ( \\ end"
    model = toy.text_model({"hi": reply})
    expected = reply[: min(reply.index(s) for s in ([stop] if isinstance(stop, str) else stop) if s in reply)]
    assert joined(model.stream("hi", stop=stop)) == (expected, "stop")
    done = model.generate("hi", stop=stop)
    assert (done.text, done.finish_reason) == (expected, "stop")
    assert [c.text for c in model.generate(["hi", "hi"], stop=stop)] == [expected] * 2
    # the tokens of the stop string were generated and are counted, nothing after them is
    assert done.completion_tokens <= len(reply.encode())


def test_a_stop_string_in_the_prompt_does_not_count():
    model = toy.text_model({"Q: hi\nA:": " fine\nQ: next"})
    assert model.generate("Q: hi\nA:", stop=["Q:", "\nA:"]).text == " fine\n"


def test_a_stop_string_may_be_open_at_the_end():
    model = toy.text_model({"hi": "so long\nObser"})
    assert joined(model.stream("hi", stop=["\nObservation"])) == ("so long\nObser", "stop")
    assert joined(model.stream("hi", stop=["\nObservation"], max_new_tokens=9)) == ("so long\nO", "length")


@settings(max_examples=60, deadline=None)
@given(st.text("ab é你", max_size=20), st.lists(st.text("ab é你", min_size=1, max_size=3), max_size=3))
def test_streaming_with_stops_is_the_whole_text_cut(reply, stops):
    from stop_reference import cut

    model = toy.text_model({"p": reply})
    assert joined(model.stream("p", stop=stops))[0] == cut(reply, stops)[0] == model.generate("p", stop=stops).text


def test_bytes_that_are_no_character_read_as_one_decoding_does():
    ids = [0xE4, 0xBD, 0x41, 0xFF, 0xFE, 0xE4, 0xBD, 0xA0, 0xC3]
    model = toy.text_model({"p": ids})
    text, _ = joined(model.stream("p"))
    assert text == model.decode(ids) == bytes(ids).decode("utf-8", "replace")


def test_logprobs():
    model = toy.text_model(toy.babble())
    done = model.generate("hi", max_new_tokens=5, logprobs=2)
    assert len(done.logprobs) == 5
    for token_id, entry in zip(done.token_ids, done.logprobs, strict=True):
        assert entry.token_id == token_id
        assert entry.alternatives[0][0] == token_id  # greedy
        assert entry.alternatives[0][2] == pytest.approx(entry.logprob)
        assert len(entry.alternatives) == 2
    assert model.generate("hi", max_new_tokens=5).logprobs is None
    assert model.generate("hi", max_new_tokens=5, logprobs=True).logprobs[0].alternatives == ()


def test_options_come_from_model_then_call():
    model = toy.text_model(
        toy.babble(),
        generation_config={"do_sample": True, "temperature": 0.6, "eos_token_id": [5, 6], "max_length": 40},
    )
    options = model.options()
    assert not options.greedy
    assert options.temperature == 0.6
    assert len(model.generate("hi", seed=1, eos_token_id=[]).token_ids) == 40 - 3
    assert model.options(temperature=0).greedy
    assert model.options(do_sample=False).greedy
    assert toy.text_model(toy.babble()).options().greedy


def test_unknown_options_name_the_nearest():
    model = toy.text_model({"hi": "x"})
    with pytest.raises(TypeError, match=r"'temprature'.*did you mean 'temperature'"):
        model.stream("hi", temprature=1)
    with pytest.raises(ValueError, match="num_beams=4 is not supported"):
        model.generate("hi", num_beams=4)


def test_errors_come_at_the_call_with_both_numbers():
    model = toy.text_model({"hi": "x"}, context=20)
    with pytest.raises(ValueError, match=r"has 31 tokens.*context is 20"):
        model.stream("a" * 30)
    with pytest.raises(ValueError, match=r"has 11 tokens.*max_length=8"):
        model.stream("a" * 10, max_length=8)
    with pytest.raises(ValueError, match="empty"):
        model.stream([])
    with pytest.raises(ValueError, match="outside the vocabulary"):
        model.stream([999])
    model.tokenizer.backend.post_processor = None  # a tokenizer that adds no <s>
    with pytest.raises(ValueError, match="prompt is empty"):
        model.generate("")


def test_an_empty_prompt_is_a_bos_where_the_tokenizer_adds_one():
    assert toy.text_model({"": "free"}).generate("").text == "free"


def test_a_batch_equals_its_single_prompts():
    model = toy.text_model(toy.babble())
    prompts = [f"prompt {i}" * (1 + i % 3) for i in range(20)]
    for options in ({}, {"temperature": 1.0, "seed": 4}, {"stop": ["a", "e"]}, {"repetition_penalty": 1.5}):
        together = model.generate(prompts, max_new_tokens=12, **options)
        alone = [model.generate(p, max_new_tokens=12, **options) for p in prompts]
        assert [c.token_ids for c in together] == [c.token_ids for c in alone]
        assert [c.text for c in together] == [c.text for c in alone]
        assert [c.finish_reason for c in together] == [c.finish_reason for c in alone]


def test_closing_a_stream_frees_its_session_at_once():
    model = toy.text_model(toy.babble())
    stream = model.stream("hi", eos_token_id=[])
    next(stream)
    assert model.generator.sessions.idle == 0
    stream.close()
    assert model.generator.sessions.idle == 1


def test_cancel_ends_within_one_step():
    model = toy.text_model(toy.babble(), delay=0.002)
    cancel = threading.Event()
    deltas = []
    for delta in model.stream("hi", cancel=cancel, max_new_tokens=400, eos_token_id=[]):
        deltas.append(delta)
        if len(deltas) == 3:
            cancel.set()
            passes = len(model.generator.engine.passes)
    assert deltas[-1].finish_reason == "cancelled"
    assert len(model.generator.engine.passes) <= passes + 1
    assert model.generator.sessions.idle == 1


def test_cancel_between_chunks_of_a_long_prompt():
    model = toy.text_model(toy.babble(), context=8192, delay=0.001)
    cancel = threading.Event()
    engine = model.generator.engine
    forward = engine.forward

    def forward_and_cancel(parts):
        if len(engine.passes) == 2:
            cancel.set()
        return forward(parts)

    engine.forward = forward_and_cancel
    done = model.generate("x" * 6000, cancel=cancel)
    assert (done.finish_reason, done.token_ids, done.text) == ("cancelled", (), "")
    assert len(engine.passes) == 3


def test_many_threads_at_once():
    model = toy.text_model(toy.babble(), delay=0.0005)
    prompts = [f"thread {i % 7}" for i in range(16)]
    expected = {p: model.generate(p, max_new_tokens=20).text for p in prompts}
    results, errors = {}, []

    def work(i):
        try:
            results[i] = [joined(model.stream(prompts[i], max_new_tokens=20))[0] for _ in range(3)]
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
    for t in threads:
        t.start()
    for t in threads:
        t.join(30)
    assert not errors
    assert all(results[i] == [expected[p]] * 3 for i, p in enumerate(prompts))


async def test_astream_equals_stream_and_does_not_block_the_loop():
    model = toy.text_model(toy.babble(), delay=0.005)
    expected = joined(model.stream("hi", max_new_tokens=30, eos_token_id=[]))
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    ticker = asyncio.create_task(tick())
    deltas = [d async for d in model.astream("hi", max_new_tokens=30, eos_token_id=[])]
    ticker.cancel()
    assert joined(deltas) == expected
    assert ticks >= 10


async def test_concurrent_astreams():
    model = toy.text_model(toy.babble(), delay=0.001)

    async def one(prompt):
        return joined([d async for d in model.astream(prompt, max_new_tokens=15)])[0]

    prompts = [f"p{i}" for i in range(6)]
    assert await asyncio.gather(*map(one, prompts)) == [model.generate(p, max_new_tokens=15).text for p in prompts]


async def test_cancelling_the_task_stops_the_work_within_one_step():
    model = toy.text_model(toy.babble(), delay=0.005)
    engine = model.generator.engine
    started = asyncio.Event()

    async def consume():
        async for _ in model.astream("hi", max_new_tokens=400, eos_token_id=[]):
            started.set()

    task = asyncio.create_task(consume())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    passes = len(engine.passes)
    await asyncio.sleep(0.1)
    assert len(engine.passes) <= passes + 1
    assert model.generator.sessions.idle == 1


async def test_leaving_astream_early_stops_the_work():
    model = toy.text_model(toy.babble(), delay=0.005)
    stream = model.astream("hi", max_new_tokens=400, eos_token_id=[])
    async for _ in stream:
        break
    await stream.aclose()
    passes = len(model.generator.engine.passes)
    await asyncio.sleep(0.05)
    assert len(model.generator.engine.passes) <= passes + 1


async def test_errors_reach_the_async_caller():
    model = toy.text_model({"hi": "x"})
    with pytest.raises(TypeError, match="temperature"):
        async for _ in model.astream("hi", temperatur=1):
            pass
    with pytest.raises(ValueError, match="empty"):
        await model.agenerate([[]])


async def test_agenerate():
    model = toy.text_model({"a": "one", "b": "two"})
    assert (await model.agenerate("a")).text == "one"
    assert [c.text for c in await model.agenerate(["a", "b"])] == ["one", "two"]


def test_an_abandoned_loop_does_not_leave_a_thread():
    model = toy.text_model(toy.babble(), delay=0.002)

    async def main():
        async for _ in model.astream("hi", max_new_tokens=400, eos_token_id=[]):
            return

    asyncio.run(main())
    deadline = time.monotonic() + 5
    while any(t.name == "lowbit-generate" for t in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_save_low_bit_hands_the_model_to_the_checkpoint(tmp_path, monkeypatch):
    import sys
    from types import SimpleNamespace

    calls = []
    fake = SimpleNamespace(save=lambda loaded, path: calls.append((loaded, path)))
    monkeypatch.setitem(sys.modules, "lowbit.checkpoint", fake)
    monkeypatch.setattr("lowbit.checkpoint", fake, raising=False)
    model = toy.text_model({"hi": "x"})
    model.save_low_bit(str(tmp_path / "m"))
    assert calls == [(model._loaded, tmp_path / "m")]
