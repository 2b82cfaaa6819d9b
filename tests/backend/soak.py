"""Mixed requests at once on a model: every answer that of a quiet moment, no memory kept. `test_soak.py` runs it in a
process of its own, whose memory is one heap (MALLOC_ARENA_MAX=1): heaps of many threads grow and shrink by more than
what is looked for.

    MALLOC_ARENA_MAX=1 python tests/backend/soak.py demo/model
"""

import asyncio
import ctypes
import gc
import random
import resource
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import lowbit

REQUESTS = 500
STORY = "Once upon a time there was a little girl who lived near a big forest. One day she went to "
PROMPTS = ["Once upon a time", "The", STORY, STORY + "the river and", STORY + "her friend's house", "What is"]
OPTIONS = {
    "short": {"max_new_tokens": 4},
    "long": {"max_new_tokens": 48, "ignore_eos": True},
    "stop": {"max_new_tokens": 40, "stop": ["e", ". ", " the"]},
    "sampled": {"max_new_tokens": 24, "temperature": 0.9, "top_k": 20, "seed": 11},
    "penalised": {"max_new_tokens": 24, "repetition_penalty": 1.3, "logprobs": 1},
    "cancelled": {"max_new_tokens": 64, "ignore_eos": True},
}
INVALID = [
    ("The", {"temprature": 1}, TypeError),
    ("The", {"max_new_tokens": 0}, ValueError),
    ([[]], {}, ValueError),
    ([10**9], {}, ValueError),
    ("word " * 3000, {}, ValueError),
]


def requests(seed, count):
    """Returns (prompt, kind, deltas to read before the cancel) triples; kind "invalid" stands beside its case."""
    rng = random.Random(seed)
    kinds = [*OPTIONS, "invalid"]
    made = []
    for _ in range(count):
        kind = rng.choice(kinds)
        made.append((rng.choice(INVALID if kind == "invalid" else PROMPTS), kind, rng.randint(1, 12)))
    return made


def in_thread(model, expected, item):
    prompt, kind, reads = item
    if kind == "invalid":
        prompt, options, error = prompt
        with pytest.raises(error):
            model.generate(prompt, **options)
        return
    if kind != "cancelled":
        assert model.generate(prompt, **OPTIONS[kind]).text == expected[prompt, kind]
        return
    cancel, text = threading.Event(), ""
    for delta in model.stream(prompt, cancel=cancel, **OPTIONS[kind]):
        text += delta.text
        reads -= 1
        if reads == 0:
            cancel.set()
    assert delta.finish_reason == "cancelled"
    assert expected[prompt, kind].startswith(text)


async def in_task(model, expected, item):
    prompt, kind, reads = item
    if kind == "invalid":
        prompt, options, error = prompt
        with pytest.raises(error):
            await model.agenerate(prompt, **options)
        return
    if kind != "cancelled":
        assert (await model.agenerate(prompt, **OPTIONS[kind])).text == expected[prompt, kind]
        return
    text = []

    async def read():
        async for delta in model.astream(prompt, **OPTIONS[kind]):
            text.append(delta.text)

    task = asyncio.create_task(read())
    while len(text) < reads:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert expected[prompt, kind].startswith("".join(text))


def soak(model, expected, seed, count):
    """Half of the requests from 16 threads, half from asyncio, 16 at a time, both at once."""
    items = requests(seed, count)

    async def tasks():
        places = asyncio.Semaphore(16)

        async def one(item):
            async with places:
                await in_task(model, expected, item)

        await asyncio.gather(*(one(item) for item in items[1::2]))

    with ThreadPoolExecutor(17) as executor:
        loop = executor.submit(asyncio.run, tasks())
        for done in [executor.submit(in_thread, model, expected, item) for item in items[::2]]:
            done.result(timeout=120)
        loop.result(timeout=120)


def resident(model):
    """Returns the process's memory in bytes with nothing kept that may go."""
    model.generator.sessions.clear()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main():
    model = lowbit.load(sys.argv[1], "sym_int4", device="cpu", threads=2)
    expected = {(p, kind): model.generate(p, **options).text for p in PROMPTS for kind, options in OPTIONS.items()}
    soak(model, expected, 0, 300)  # allocators and threads take what they keep
    before = resident(model)
    soak(model, expected, 1, REQUESTS)
    after = resident(model)
    assert after <= before * 1.02, f"{(after - before) / 1e6:.1f} MB more than {before / 1e6:.1f} MB"
    state = model.memory()
    assert state["running_sessions"] == state["kv_bytes"] == 0
    assert model.generator._scheduler._rows == []
    assert not [t for t in threading.enumerate() if t.name == "lowbit-generate"]
    print(f"{before / 1e6:.1f} MB before, {after / 1e6:.1f} MB after")


if __name__ == "__main__":
    main()
