"""Calls of many threads as one batch: sharing, fairness, errors, cancellation, slow readers, forks. Toy engine."""

import asyncio
import gc
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import lowbit
import toy
from lowbit.asynchronous import AHEAD, iterate_in_thread
from lowbit.generate import Generator, Request
from lowbit.sampling import GenerationOptions
from lowbit.scheduler import BESIDE_STEPS, RUN_AHEAD


def request(prompt, allowed=None, **options):
    return Request(prompt, GenerationOptions.resolve({"max_new_tokens": 20}, options), (), allowed)


def tokens(batch):
    return [event.token for event in batch if event.token is not None]


def in_threads(*functions):
    """Runs functions at once; returns their results, or the exceptions they raised."""
    results = [None] * len(functions)

    def work(i):
        try:
            results[i] = functions[i]()
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a caller waits for ever"
    return results


def alone(prompt, **options):
    return tokens(Generator(toy.ToyEngine(toy.babble())).start([request(prompt, **options)]))


def test_calls_share_passes_and_get_what_they_would_get_alone():
    engine = toy.ToyEngine(toy.babble(), delay=0.002)
    generator = Generator(engine)
    prompts = [list(range(n, n + 4)) for n in range(8)]
    results = in_threads(*(lambda p=p: tokens(generator.start([request(p)])) for p in prompts))
    assert results == [alone(p) for p in prompts]
    assert sum(len(p) for p in engine.passes) == 8 * 20
    assert len(engine.passes) < 8 * 20 / 3
    assert max(len(p) for p in engine.passes) == 8


def test_a_call_that_joins_steps_with_those_that_run():
    engine = toy.ToyEngine(toy.babble())
    generator = Generator(engine)
    a, b = (generator.start([request([n] * 3)]) for n in (1, 2))
    next(a)
    next(b)
    assert engine.passes == [[3], [1, 3]]
    next(a)  # has been computed beside b's prompt
    assert len(engine.passes) == 2
    next(a)
    assert engine.passes[2] == [1, 1]


def test_running_answers_go_on_while_a_long_prompt_comes_in():
    engine = toy.ToyEngine(toy.babble(), context=2000)
    generator = Generator(engine)
    running, long = generator.start([request([1] * 4)]), generator.start([request([2] * 300)])
    next(running)
    next(long)
    beside = engine.passes[1:]
    assert [p[-1] for p in beside] == [BESIDE_STEPS] * (300 // BESIDE_STEPS) + [300 % BESIDE_STEPS]
    assert all(p[0] == 1 and len(p) == 2 for p in beside)
    assert tokens(running) == alone([1] * 4)[1:]


def test_a_slow_reader_waits_alone():
    engine = toy.ToyEngine(toy.babble(), context=1000)
    generator = Generator(engine, max_batch=2)
    slow = generator.start([request([1], max_new_tokens=500)])
    next(slow)
    also_slow = generator.start([request([3], max_new_tokens=500)])
    next(also_slow)
    assert tokens(generator.start([request([2], max_new_tokens=300)])) == alone([2], max_new_tokens=300)
    assert slow._rows[0].unread == also_slow._rows[0].unread == RUN_AHEAD
    assert [len(p) for p in engine.passes[-100:]] == [1] * 100  # they held no place of the two
    assert tokens(slow) == alone([1], max_new_tokens=500)[1:]


def test_nothing_runs_that_nobody_reads():
    engine = toy.ToyEngine(toy.babble())
    generator = Generator(engine)
    stream = generator.start([request([1])])
    next(stream)
    threads, cpu = threading.active_count(), time.process_time()
    time.sleep(0.2)
    assert time.process_time() - cpu < 0.05
    assert threading.active_count() == threads
    assert len(engine.passes) == 1


def test_the_error_of_one_call_stays_its_own():
    def logits(ids):
        return np.full(toy.VOCAB, np.nan) if ids[0] == 66 and len(ids) > 6 else toy.babble()(ids)

    def breaks(output):
        if output.size == 4:
            raise LookupError("no rule for this")

    generator = Generator(toy.ToyEngine(logits, delay=0.001))
    results = in_threads(
        lambda: tokens(generator.start([request([66, 1])])),
        lambda: tokens(generator.start([request([5], allowed=breaks)])),
        lambda: tokens(generator.start([request([7])])),
        lambda: tokens(generator.start([request([8]), request([9])])),
    )
    assert isinstance(results[0], ValueError)
    assert "NaN" in str(results[0])
    assert isinstance(results[1], LookupError)
    assert results[2] == alone([7])
    assert sorted(results[3]) == sorted(alone([8]) + alone([9]))
    assert generator.sessions.idle == 5


def test_a_pass_that_fails_is_tried_row_by_row():
    engine = toy.ToyEngine(toy.babble(), delay=0.001)
    forward = engine.forward

    def narrow(parts):
        if len(parts) > 1:
            forward(parts[:1])  # breaks off in the middle
            raise MemoryError("no room for two")
        if parts[0][0].ids[:1] == [13]:
            raise MemoryError("not even for one")
        return forward(parts)

    engine.forward = narrow
    generator = Generator(engine)
    results = in_threads(*(lambda n=n: tokens(generator.start([request([n])])) for n in (1, 2, 13, 3)))
    assert results[0] == alone([1])
    assert results[1] == alone([2])
    assert results[3] == alone([3])
    assert str(results[2]) == "not even for one"


@pytest.mark.parametrize("where", ["in the pass", "after it"])
def test_an_interrupt_in_the_thread_that_steps_costs_the_others_nothing(where):
    engine = toy.ToyEngine(toy.babble())
    generator = Generator(engine)
    other, interrupted = generator.start([request([1])]), generator.start([request([2])])
    got = [next(other).token]
    if where == "in the pass":
        forward = engine.forward

        def interrupt(parts):
            engine.forward = forward
            forward(parts)
            raise KeyboardInterrupt

        engine.forward = interrupt
    else:  # the pass is done, its logits are lost before any token was chosen
        row = other._rows[0]
        choose = row.choose

        def choose_later(logits):
            row.choose = choose
            raise KeyboardInterrupt

        row.choose = choose_later
    with pytest.raises(KeyboardInterrupt):
        next(interrupted)
    assert got + tokens(other) == alone([1])
    assert list(interrupted) == []


def test_cancelling_frees_the_place_within_a_step():
    engine = toy.ToyEngine(toy.babble(), delay=0.002)
    generator = Generator(engine, max_batch=2)
    cancel = threading.Event()
    running = [
        lambda: tokens(generator.start([request([1], max_new_tokens=200)])),
        lambda: [e.finish_reason for e in generator.start([request([2], max_new_tokens=200, cancel=cancel)])][-1],
    ]

    def third():
        while len(engine.passes) < 10:
            time.sleep(0.001)
        late = generator.start([request([3])])
        cancel.set()
        at = len(engine.passes)
        next(late)
        return len(engine.passes) - at

    results = in_threads(*running, third)
    assert results[1] == "cancelled"
    assert results[2] <= 4


def test_no_token_comes_after_the_cancel_even_if_computed_ahead():
    cancel = threading.Event()
    generator = Generator(toy.ToyEngine(toy.babble()))
    a, b = generator.start([request([1], cancel=cancel)]), generator.start([request([2])])
    next(a)
    for _ in range(5):
        next(b)
    cancel.set()
    assert [(e.token, e.finish_reason) for e in a] == [(None, "cancelled")]


def test_an_abandoned_stream_is_collected_with_its_session():
    generator = Generator(toy.ToyEngine(toy.babble()))
    stream = generator.start([request([1])])
    next(stream)
    del stream
    gc.collect()
    assert generator.sessions.idle == 1
    assert generator._scheduler._rows == []


def test_many_threads_that_read_leave_and_cancel():
    """Whoever makes the steps may leave at any moment; somebody else must go on, or a caller waits for ever."""
    engine = toy.ToyEngine(toy.babble(), delay=0.0002)
    generator = Generator(engine, max_batch=4)
    expected = {n: alone([n], max_new_tokens=12) for n in range(10)}

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(12):
            n, take = int(rng.integers(10)), int(rng.integers(1, 20))
            cancel = threading.Event()
            with generator.start([request([n], max_new_tokens=12, cancel=cancel)]) as batch:
                got = []
                for event in batch:
                    if event.token is not None:
                        got.append(event.token)
                    if len(got) == take:
                        if rng.integers(2):
                            break
                        cancel.set()
            assert got == expected[n][: len(got)]
            assert len(got) == min(take, 12)
        return True

    assert in_threads(*(lambda s=s: work(s) for s in range(12))) == [True] * 12
    assert generator._scheduler._rows == []
    assert not generator._scheduler._turn.locked()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_generates_while_the_parent_is_in_a_step():
    engine = toy.ToyEngine(toy.babble(), delay=0.05)
    generator = Generator(engine)
    cancel = threading.Event()
    # Far more steps than the fork waits for its turn, which it may not get at once on a busy machine.
    batch = generator.start([request([1], max_new_tokens=500, cancel=cancel)])
    thread = threading.Thread(target=lambda: list(batch))
    thread.start()
    while not generator._scheduler._turn.locked():
        time.sleep(0.001)
    child = os.fork()
    if child == 0:
        try:
            engine.delay = 0
            engine.in_use.clear()
            good = tokens(generator.start([request([2])])) == alone([2])
            try:
                next(batch)
                good = False
            except RuntimeError as error:
                good = good and "fork" in str(error)
            os._exit(0 if good else 1)
        finally:
            os._exit(2)
    assert exit_code(child) == 0
    cancel.set()
    thread.join(20)
    assert not thread.is_alive()


def exit_code(child):
    """Returns the exit code of a forked child, which has 30 seconds."""
    deadline = time.monotonic() + 30
    while (done := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, 9)
            os.waitpid(child, 0)
            pytest.fail("the child waits for ever")
        time.sleep(0.01)
    return os.waitstatus_to_exitcode(done[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_runs_the_native_engine_while_the_parent_does():
    """A fork in the middle of a pass would leave the child with a decoder locked by nobody."""
    path = Path(__file__).parents[2] / "demo" / "model"
    if not (path / "config.json").exists():
        pytest.skip("the embedded model is not in this checkout yet")
    model = lowbit.load(path, "sym_int4", device="cpu", threads=2)
    expected = model.generate("The", max_new_tokens=8).text
    stop = threading.Event()
    thread = threading.Thread(
        target=lambda: [model.generate("Once", max_new_tokens=200, ignore_eos=True, cancel=stop) for _ in range(50)]
    )
    thread.start()
    try:
        for _ in range(5):
            time.sleep(0.01)
            child = os.fork()
            if child == 0:
                try:
                    os._exit(0 if model.generate("The", max_new_tokens=8).text == expected else 1)
                finally:
                    os._exit(2)
            assert exit_code(child) == 0
    finally:
        stop.set()
        thread.join(60)


async def test_a_slow_asynchronous_reader_bounds_what_is_computed():
    model = toy.text_model(toy.babble(), context=2000)
    stream = model.astream("hi", max_new_tokens=1500, eos_token_id=[])
    await anext(stream)
    await asyncio.sleep(0.3)
    passes = len(model.generator.engine.passes)
    assert passes <= 2 * AHEAD
    await asyncio.sleep(0.1)
    assert len(model.generator.engine.passes) == passes
    rest = [d async for d in stream]
    assert rest[-1].completion_tokens == 1500


async def test_the_worker_of_an_abandoned_loop_does_not_hold_up_the_exit(monkeypatch):
    """A loop that is stopped, not closed, takes items and reads none: the worker must not wait for it at the exit."""
    monkeypatch.setattr("lowbit.asynchronous.EXIT_CHECK_SECONDS", 0.01)
    stream = iterate_in_thread(lambda cancel: (i for i in range(10 * AHEAD)))
    await anext(stream)
    monkeypatch.setattr(threading.main_thread(), "is_alive", lambda: False)
    deadline = time.monotonic() + 10
    while any(t.name == "lowbit-generate" for t in threading.enumerate()):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    await stream.aclose()
