"""How much faster are parallel calls than the same ones in turn, and what does the scheduler cost a call alone?

Per shape, in one process, interleaved: N requests sequentially, from N threads, from N asyncio tasks, and as one list;
a single stream beside a loop that only runs passes and takes the largest logit; the longest gap in a running stream
while a long prompt comes in. Answers are checked to be those of the sequential calls.

    python benchmarks/bench_concurrency.py --models /tmp/models --shapes llama-1b --parallel 8
"""

import asyncio
import itertools
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import _common as common
import numpy as np

from lowbit.generate import Request
from lowbit.sampling import GenerationOptions

PROMPT = 32  # tokens
OPTIONS = {"temperature": 0, "ignore_eos": True}


class Prompts:
    """Prompts that begin differently every time, so that no kept session helps."""

    def __init__(self, vocab_size: int) -> None:
        self.rng = np.random.default_rng(0)
        self.vocab_size = vocab_size

    def take(self, count: int, length: int = PROMPT) -> list[np.ndarray]:
        return list(self.rng.integers(300, self.vocab_size, (count, length), dtype=np.int32))


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def parallel_calls(model, prompts: Prompts, parallel: int, steps: int, rounds: int) -> dict:
    """Returns tokens/s of the ways to make `parallel` calls."""
    options = {**OPTIONS, "max_new_tokens": steps}
    answers: dict[str, list] = {}
    batch = prompts.take(parallel)

    def from_tasks(asked):
        async def run():
            return await asyncio.gather(*(model.agenerate(p, **options) for p in asked))

        return asyncio.run(run())

    def from_threads(asked):
        with ThreadPoolExecutor(parallel) as executor:
            return list(executor.map(lambda p: model.generate(p, **options), asked))

    ways = {
        "sequential": lambda asked: [model.generate(p, **options) for p in asked],
        "threads": from_threads,
        "tasks": from_tasks,
        "list": lambda asked: model.generate(asked, **options),
    }

    def sample(name: str) -> float:
        model.generator.sessions.clear()
        start = time.perf_counter()
        answers[name] = [done.token_ids for done in ways[name](batch)]
        return parallel * steps / (time.perf_counter() - start)

    samples = common.interleave({name: lambda n=name: sample(n) for name in ways}, rounds)
    wrong = [name for name in ways if answers[name] != answers["sequential"]]
    if wrong:
        raise SystemExit(f"answers differ from the sequential ones: {wrong}")
    result = {f"{name}_tok_s": round(common.median(values), 1) for name, values in samples.items()}
    for name in ("threads", "tasks", "list"):
        result[f"{name}_ratio"] = round(common.ratio(samples[name], samples["sequential"]), 2)
    return result


def started(model, prompt: np.ndarray, steps: int):
    """Returns the events of one answer: of random weights, most tokens have no text and so no delta."""
    return model.generator.start([Request(prompt, GenerationOptions(max_new_tokens=steps, temperature=0))])


def one_stream(model, prompts: Prompts, steps: int, rounds: int) -> dict:
    """Returns what a stream's step costs beside the bare pass and argmax."""
    engine = model.generator.engine

    def bare() -> float:
        cache = engine.new_cache(engine.capacity(PROMPT + steps))
        token = int(engine.forward([(cache, prompts.take(1)[0], False)])[0].argmax())
        start = time.perf_counter()
        for _ in range(steps):
            token = int(engine.forward([(cache, np.array([token], np.int32), False)])[0].argmax())
        return (time.perf_counter() - start) / steps

    def stream() -> float:
        events = started(model, prompts.take(1)[0], steps + 1)
        next(events)
        start = time.perf_counter()
        for _ in events:
            pass
        return (time.perf_counter() - start) / steps

    samples = common.interleave({"bare": bare, "stream": stream}, 2 * rounds + 1)
    return {
        "step_ms": round(common.median(samples["stream"]) * 1e3, 2),
        "over_bare_step": round(common.ratio(samples["stream"], samples["bare"]), 3),
    }


def gaps(model, prompts: Prompts, long: int) -> dict:
    """Returns the longest wait of a running stream for its next token while a prompt of `long` tokens is prefilled."""
    running, done = threading.Event(), threading.Event()
    ticks: list[float] = []

    def stream() -> None:
        for _ in started(model, prompts.take(1)[0], 2000):
            ticks.append(time.perf_counter())
            if len(ticks) == 8:
                running.set()
            if done.is_set():
                return

    reader = threading.Thread(target=stream)
    reader.start()
    running.wait()
    begin = time.perf_counter()
    model.generate(prompts.take(1, long)[0], max_new_tokens=1, **OPTIONS)
    end = time.perf_counter()
    done.set()
    reader.join()
    before = [b - a for a, b in itertools.pairwise(ticks) if b < begin]
    beside = [b - a for a, b in itertools.pairwise(ticks) if begin <= b <= end]
    return {
        f"beside_{long}_s": round(end - begin, 2),
        "gap_alone_ms": round(statistics.median(before) * 1e3, 1),
        "gap_beside_ms": round(statistics.median(beside) * 1e3, 1),
        "gap_longest_ms": round(max(beside) * 1e3, 1),
    }


def main() -> None:
    parser = common.model_parser(__doc__, rounds=3)
    parser.add_argument("--parallel", type=int, default=8)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--long", type=int, default=512, help="tokens of the prompt that comes in beside a stream")
    args = parser.parse_args()
    rows = []
    for shape, model in common.models_of(args):
        prompts = Prompts(model.spec.vocab_size)
        row = parallel_calls(model, prompts, args.parallel, args.steps, args.rounds)
        row |= one_stream(model, prompts, args.steps, args.rounds) | gaps(model, prompts, args.long)
        rows.append({"shape": shape, "format": args.format, "parallel": args.parallel, **row})
    common.report("concurrency", rows, args.json, threads=args.threads)


if __name__ == "__main__":
    main()
