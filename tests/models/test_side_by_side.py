"""Several models, and torch's threads, in one process: same results, no deadlock, no CPU time when all are idle."""

import threading
import time

import numpy as np
import pytest

from lowbit import ops
from lowbit.models import ModelSpec, Rope
from models import tiny

SPEC = ModelSpec(
    family="tiny", vocab_size=67, hidden_size=64, layers=2, heads=4, kv_heads=2, head_dim=16, ffn_size=96, context=256,
    ropes=(Rope("half", 16, tuple(1000 ** (-i / 8) for i in range(8))),), layer_rope=(0, 0),
)  # fmt: skip
TOKENS = [int(token) for token in np.random.default_rng(0).integers(0, SPEC.vocab_size, 40)]
TIER = ops.default_tier()


def a_model(seed: int):
    return tiny.decoder(SPEC, tiny.packed(tiny.random_weights(SPEC, seed=seed), "sym_int4", 32), TIER, "int8")


def pass_and_steps(model, threads: int) -> np.ndarray:
    session = tiny.cache(SPEC)
    parts = [TOKENS[:20], *([token] for token in TOKENS[20:])]
    return np.concatenate([tiny.run(model, session, part, threads) for part in parts])


def in_threads(*works) -> list:
    """Returns what the functions return, all running at once; fails when one has not ended after a minute."""
    results: list = [None] * len(works)
    start = threading.Barrier(len(works))

    def call(i: int) -> None:
        start.wait()
        results[i] = works[i]()

    threads = [threading.Thread(target=call, args=(i,), daemon=True) for i in range(len(works))]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 60
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads), "deadlock"
    return results


def test_many_models_on_shared_and_own_pools():
    models = [a_model(seed) for seed in range(4)]
    alone = [pass_and_steps(model, 2) for model in models]
    works = [
        lambda model=model, threads=threads: pass_and_steps(model, threads)
        for model in models
        for threads in (1, 2, 2, 3)
    ]
    for i, got in enumerate(in_threads(*works)):
        np.testing.assert_array_equal(got, alone[i // 4])


def test_idle_models_use_no_cpu_time():
    models = [a_model(seed) for seed in range(2)]
    for threads in (1, 2, 3):
        for model in models:
            pass_and_steps(model, threads)
    time.sleep(0.05)  # workers spin for a moment before they sleep
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.02


@pytest.mark.torch
def test_beside_the_threads_of_torch():
    import torch

    model = a_model(0)
    alone = pass_and_steps(model, 2)
    matrix = torch.from_numpy(np.random.default_rng(1).standard_normal((300, 300)).astype(np.float32))

    def products() -> float:
        return float(sum((matrix @ matrix).abs().sum() for _ in range(30)))

    expected = products()
    got = in_threads(products, lambda: pass_and_steps(model, 2), products, lambda: pass_and_steps(model, 3))
    assert got[0] == pytest.approx(expected, rel=1e-4)
    assert got[2] == pytest.approx(expected, rel=1e-4)
    np.testing.assert_array_equal(got[1], alone)
    np.testing.assert_array_equal(got[3], alone)
