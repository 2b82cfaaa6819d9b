"""The generator over a toy engine: sessions, prefix reuse, chunks, batches, limits. Token ids only."""

import threading

import numpy as np
import pytest

import toy
from lowbit.generate import Generator, Request
from lowbit.sampling import GenerationOptions
from lowbit.sessions import MIN_REUSE, common_prefix


def request(prompt, eos=(toy.EOS,), allowed=None, **options):
    return Request(prompt, GenerationOptions.resolve(options), eos, allowed)


def run(generator, *requests):
    """Returns per row (token ids, finish reason)."""
    rows = [([], []) for _ in requests]
    for event in generator.start(requests):
        if event.token is not None:
            rows[event.row][0].append(event.token)
        if event.finish_reason:
            rows[event.row][1].append(event.finish_reason)
    assert all(len(reasons) == 1 for _, reasons in rows)
    return [(ids, reasons[0]) for ids, reasons in rows]


def counting(ids):
    """The next id is the last one plus one."""
    return toy.favour((ids[-1] + 1) % toy.VOCAB)


def test_stops_at_eos_and_at_the_limit():
    generator = Generator(toy.ToyEngine(counting))
    assert run(generator, request([1, 2], eos=(6,))) == [([3, 4, 5, 6], "stop")]
    assert run(generator, request([1, 2], eos=(9, 5, 7))) == [([3, 4, 5], "stop")]
    assert run(generator, request([1, 2], eos=(6,), max_new_tokens=2)) == [([3, 4], "length")]
    assert run(generator, request([1, 2], eos=(6,), max_length=5)) == [([3, 4, 5], "length")]
    assert run(generator, request([1, 2], eos=(4,), ignore_eos=True, max_new_tokens=4)) == [([3, 4, 5, 6], "length")]


def test_the_default_limit_and_the_end_of_the_context():
    assert len(run(Generator(toy.ToyEngine(counting, context=4096)), request([1], eos=()))[0][0]) == 256
    ids, reason = run(Generator(toy.ToyEngine(counting, context=10)), request([1, 2, 3], eos=()))[0]
    assert (len(ids), reason) == (7, "length")


def test_min_new_tokens_forbids_eos_until_then():
    def always_eos(ids):
        logits = toy.favour(7)
        logits[8] = 10
        return logits

    generator = Generator(toy.ToyEngine(always_eos))
    assert run(generator, request([1], eos=(7,), min_new_tokens=3)) == [([8, 8, 8, 7], "stop")]


def test_suppressed_tokens_and_constraints():
    generator = Generator(toy.ToyEngine(counting))
    ids, _ = run(generator, request([1], eos=(), suppress_tokens=[2], max_new_tokens=1))[0]
    assert ids == [0]  # the lowest of the equal others

    def only_even(output):
        words = np.full((toy.VOCAB + 31) // 32, 0x55555555, np.uint32)
        return words if output.size < 3 else None

    ids, _ = run(generator, request([1], eos=(), allowed=only_even, suppress_tokens=[0], max_new_tokens=5))[0]
    assert all(i % 2 == 0 and i != 0 for i in ids[:3])
    assert ids[3:] == [ids[2] + 1, ids[2] + 2]


def test_long_prompts_are_prefilled_in_chunks():
    engine = toy.ToyEngine(counting, context=1000)
    generator = Generator(engine, prefill_chunk=64)
    run(generator, request([5] * 150, max_new_tokens=2))
    assert engine.passes == [[64], [64], [22], [1]]


def test_rows_share_the_chunk_and_step_while_others_prefill():
    engine = toy.ToyEngine(counting, context=1000)
    generator = Generator(engine, prefill_chunk=32)
    run(generator, request([5] * 8, max_new_tokens=3), request([5] * 40, max_new_tokens=2))
    assert engine.passes == [[8, 24], [1, 16], [1, 1]]


def test_rows_leave_and_waiting_ones_enter():
    engine = toy.ToyEngine(counting)
    generator = Generator(engine, max_batch=2, idle_sessions=1)
    results = run(generator, *(request([n], eos=(), max_new_tokens=n) for n in (1, 4, 2, 1)))
    assert [len(ids) for ids, _ in results] == [1, 4, 2, 1]
    assert max(len(p) for p in engine.passes) == 2
    assert len(engine.passes) == 4


def test_a_known_prefix_is_not_computed_again():
    engine = toy.ToyEngine(counting, context=1000)
    generator = Generator(engine)
    prompt = list(range(100))
    (answer, _) = run(generator, request(prompt, eos=(), max_new_tokens=5))[0]
    engine.passes.clear()
    follow_up = [*prompt, *answer, 7, 8]
    batch = generator.start([request(follow_up, eos=(), max_new_tokens=1)])
    assert [e.token for e in batch] == [9]
    assert batch.cached_tokens(0) == 104  # the last answer token was never fed back
    assert engine.passes == [[3]]
    assert engine.caches == 1


def test_the_same_prompt_again_computes_its_last_token_only():
    engine = toy.ToyEngine(counting)
    generator = Generator(engine)
    first = run(generator, request(list(range(50)), max_new_tokens=3))
    engine.passes.clear()
    assert run(generator, request(list(range(50)), max_new_tokens=3)) == first
    assert engine.passes == [[1], [1], [1]]


def test_reuse_never_changes_the_result():
    rng = np.random.default_rng(0)
    engine = toy.ToyEngine(toy.babble(memory=12), context=300)
    generator = Generator(engine, idle_sessions=4, prefill_chunk=16)
    without = 0
    stems = [rng.integers(0, 256, 60) for _ in range(3)]
    for _ in range(60):
        stem = stems[rng.integers(3)]
        prompt = np.concatenate([stem[: rng.integers(1, 60)], rng.integers(0, 256, rng.integers(0, 20))])
        got = run(generator, request(prompt, max_new_tokens=6))
        other = toy.ToyEngine(toy.babble(memory=12), context=300)
        assert got == run(Generator(other, idle_sessions=0), request(prompt, max_new_tokens=6))
        assert generator.sessions.idle <= 4
        without += sum(n for p in other.passes for n in p)
    assert sum(n for p in engine.passes for n in p) < 0.8 * without


def test_a_short_common_prefix_does_not_cost_another_session():
    engine = toy.ToyEngine(counting, context=1000)
    generator = Generator(engine, idle_sessions=2)
    first = [1] * MIN_REUSE + list(range(50))
    run(generator, request(first, max_new_tokens=1))
    run(generator, request([1, 2, 3] * 20, max_new_tokens=1))
    batch = generator.start([request(first, max_new_tokens=1)])
    list(batch)
    assert batch.cached_tokens(0) == len(first) - 1


def test_idle_sessions_are_bounded_by_memory():
    engine = toy.ToyEngine(counting, context=1000)
    generator = Generator(engine, idle_bytes=250)
    for n in (1, 2, 3):
        run(generator, request([n] * 100, eos=(), max_new_tokens=1))
    assert generator.sessions.idle == 2
    run(generator, request([9] * 400, eos=(), max_new_tokens=1))
    assert generator.sessions.idle == 1  # the latest stays whatever its length
    generator.sessions.clear()
    assert generator.sessions.idle == 0


def test_a_prompt_goes_on_where_a_kept_one_ends_and_branches_off_elsewhere():
    engine = toy.ToyEngine(counting, context=1000)
    generator = Generator(engine)
    stem = list(range(50))
    run(generator, request([*stem, 60], eos=(), max_new_tokens=3))  # keeps stem, 60, 61, 62
    run(generator, request([*stem, 70], eos=(), max_new_tokens=3))  # branches off
    assert (engine.caches, generator.sessions.idle) == (1, 2)  # a fork is no new cache
    for turn, at in (([*stem, 60, 61, 62, 63, 5], 52), ([*stem, 70, 71, 72, 73, 5], 52), ([*stem, 99], 50)):
        batch = generator.start([request(turn, eos=(), max_new_tokens=1)])
        assert len(list(batch)) == 1
        assert batch.cached_tokens(0) in (at, at + 1)
    assert generator.sessions.idle == 3


def test_a_shared_beginning_is_computed_once_however_many_ask():
    """Rows that begin like one that is being prefilled wait for it, in one call or in several."""
    engine = toy.ToyEngine(counting, context=1000)
    generator = Generator(engine, prefill_chunk=32)
    system = list(range(100))
    prompts = [[*system, 150 + n] for n in range(6)]
    results = run(generator, *(request(p, eos=(), max_new_tokens=3) for p in prompts))
    assert results == [([p[-1] + 1, p[-1] + 2, p[-1] + 3], "length") for p in prompts]
    assert sum(n for p in engine.passes for n in p) <= 101 + 6 * 3 + 2 * MIN_REUSE


def test_a_row_that_waits_for_a_beginning_goes_on_when_it_does_not_come():
    generator = Generator(toy.ToyEngine(counting, context=1000), prefill_chunk=32)
    cancel = threading.Event()
    first = request(list(range(200)), cancel=cancel)
    batch = generator.start([first, request([*range(200), 7], eos=(), max_new_tokens=2)])
    cancel.set()
    events = [(e.row, e.token, e.finish_reason) for e in batch]
    assert events == [(0, None, "cancelled"), (1, 8, None), (1, 9, "length")]


def test_sessions_are_exclusive_while_in_use():
    engine = toy.ToyEngine(counting)
    generator = Generator(engine)
    prompt = list(range(40))
    a = generator.start([request(prompt, eos=(), max_new_tokens=50)])
    b = generator.start([request(prompt, eos=(), max_new_tokens=50)])
    for _ in range(50):
        assert next(a).token == next(b).token
    a.close()
    b.close()
    assert generator.sessions.idle == 2


def test_closing_frees_all_sessions_at_once():
    generator = Generator(toy.ToyEngine(counting))
    with generator.start([request([n], eos=()) for n in range(3)]) as batch:
        next(batch)
    assert generator.sessions.idle == 3
    assert list(batch) == []


def test_a_batch_never_started_holds_nothing():
    engine = toy.ToyEngine(counting)
    Generator(engine).start([request([1])])
    assert engine.caches == 0


def test_finish_takes_a_row_out():
    generator = Generator(toy.ToyEngine(counting))
    seen = {0: 0, 1: 0}
    batch = generator.start([request([1], eos=(), max_new_tokens=10), request([50], eos=(), max_new_tokens=10)])
    for event in batch:
        seen[event.row] += 1
        if event.row == 0 and seen[0] == 3:
            batch.finish(0)
    assert seen == {0: 3, 1: 10}


def test_cancel_of_one_row_leaves_the_others():
    cancel = threading.Event()
    generator = Generator(toy.ToyEngine(counting))
    reasons, counts = {}, {0: 0, 1: 0}
    requests = [request([1], eos=(), max_new_tokens=9, cancel=cancel), request([50], eos=(), max_new_tokens=9)]
    for event in generator.start(requests):
        counts[event.row] += event.token is not None
        if counts[0] == 2:
            cancel.set()
        if event.finish_reason:
            reasons[event.row] = event.finish_reason
    assert reasons == {0: "cancelled", 1: "length"}
    assert counts == {0: 2, 1: 9}


def test_cancelled_rows_that_wait_never_run():
    cancel = threading.Event()
    cancel.set()
    engine = toy.ToyEngine(counting)
    events = list(Generator(engine, max_batch=2).start([request([1]) for _ in range(5)], cancel=cancel))
    assert [(e.row, e.finish_reason) for e in events] == [(i, "cancelled") for i in range(5)]
    assert engine.passes == []


def test_a_broken_pass_drops_its_sessions():
    engine = toy.ToyEngine(counting)
    generator = Generator(engine)
    run(generator, request(list(range(30)), max_new_tokens=2))
    assert generator.sessions.idle == 1
    forward, engine.forward = engine.forward, lambda parts: (_ for _ in ()).throw(MemoryError("no room"))
    with pytest.raises(MemoryError):
        run(generator, request(list(range(40)), max_new_tokens=2))  # would take the kept one over
    assert generator.sessions.idle == 0
    engine.forward = forward
    assert run(generator, request(list(range(30)), max_new_tokens=2)) == [([30, 31], "length")]


def test_broken_logits_are_a_clear_error():
    generator = Generator(toy.ToyEngine(lambda ids: np.full(toy.VOCAB, np.nan)))
    with pytest.raises(ValueError, match="NaN"):
        run(generator, request([1]))


@pytest.mark.parametrize(
    ("prompt", "error", "words"),
    [
        ([], ValueError, "empty"),
        ([1.5], TypeError, "token ids"),
        ([[1, 2]], TypeError, r"shape \(1, 2\)"),
        ([-1], ValueError, "token id -1.*outside"),
        ([toy.VOCAB], ValueError, f"outside the vocabulary \\(0 to {toy.VOCAB - 1}\\)"),
        ([1] * 16, ValueError, "16 tokens, the context is 16"),
        ([1] * 15, None, ""),
    ],
)
def test_bad_prompts(prompt, error, words):
    generator = Generator(toy.ToyEngine(counting, context=16))
    if error is None:
        assert run(generator, request(prompt, eos=())) == [([2], "length")]
    else:
        with pytest.raises(error, match=words):
            generator.start([request(prompt)])


def test_each_row_has_its_own_seed_and_none_means_a_new_one():
    generator = Generator(toy.ToyEngine(toy.babble()))
    one, other, again = run(generator, *(request([1], temperature=2.0, seed=s, max_new_tokens=12) for s in (1, 2, 1)))
    assert one == again != other
    drawn = {tuple(run(generator, request([1], eos=(), temperature=2.0, max_new_tokens=12))[0][0]) for _ in range(4)}
    assert len(drawn) > 1


def test_a_stream_collected_while_the_pool_is_in_use_does_not_lock_it():
    """The garbage collector may run, and close an abandoned batch, in the middle of any call."""
    engine = toy.ToyEngine(counting)
    generator = Generator(engine)
    abandoned = generator.start([request([1] * 20, eos=())])
    next(abandoned)
    pool = generator.sessions

    def call():
        with pool._lock:
            abandoned.close()
        pool.acquire(np.arange(30, dtype=np.int32), 40)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()


def test_contexts_and_capacities_of_the_native_engine(caplog):
    from types import SimpleNamespace

    from lowbit.engine import capacities_of, context_of

    loaded = SimpleNamespace(spec=SimpleNamespace(context=128, ropes=[]), tensors={})
    assert context_of(loaded, None) == 128
    assert context_of(loaded, 64) == 64
    assert context_of(loaded, 256) == 256
    assert "more than the 128 tokens" in caplog.text
    loaded.tensors = {"position_embedding.weight": None}
    with pytest.raises(ValueError, match="context=256 is more than the 128 positions"):
        context_of(loaded, 256)
    long_rope = SimpleNamespace(ropes=[SimpleNamespace(long_from=4096), SimpleNamespace(long_from=0)])
    assert capacities_of(long_rope, 131072) == [4096, 131072]
    assert capacities_of(long_rope, 2048) == [2048]


def test_common_prefix():
    a = np.array([1, 2, 3])
    assert common_prefix(a, np.array([1, 2, 4, 5])) == 2
    assert common_prefix(a, a) == 3
    assert common_prefix(a, np.array([], int)) == 0
    assert common_prefix(a, np.array([9])) == 0
