"""How soon does an answer begin when the prompt's beginning is known, and what do sessions that share one hold?

First-token milliseconds, interleaved, for contexts of `--contexts` tokens and a question of `--question` tokens. The
reference is the least there is to do: one pass over the question on a session that has the context already, without
looking one up, sampling or text. Against it: a further question that branches off the kept context (a fork); a next
turn that goes on where a kept session ends. Beside them the question alone, without any context, and context and
question with nothing kept (once). Then the memory of `--branches` questions over one context.

    python benchmarks/bench_prefix.py --models /tmp/models --shapes qwen2-0.5b --contexts 512 2048 8192
"""

import time
from collections.abc import Callable
from typing import Any

import _common as common
import numpy as np

import lowbit

OPTIONS = {"temperature": 0, "ignore_eos": True, "max_new_tokens": 1}


class Asker:
    """Asks one model questions of random tokens, and checks what came from a kept session."""

    def __init__(self, model: Any, context: int, question: int) -> None:
        self.model = model
        self.rng = np.random.default_rng(0)
        self.question = question
        self.context = self.draw(context)
        self.talk = self.asked()
        model.generator.sessions.clear()

    def draw(self, count: int) -> np.ndarray:
        return self.rng.integers(300, self.model.spec.vocab_size, count, dtype=np.int32)

    def asked(self) -> np.ndarray:
        """Returns the context with a new question."""
        return np.concatenate([self.context, self.draw(self.question)])

    def ask(self, prompt: np.ndarray, cached: int) -> float:
        """Returns the milliseconds until the first token."""
        start = time.perf_counter()
        done = self.model.generate(prompt, **OPTIONS)
        seconds = time.perf_counter() - start
        assert isinstance(done, lowbit.text.Completion)
        if done.cached_tokens != cached:
            raise SystemExit(f"{done.cached_tokens} tokens came from a kept session instead of {cached}")
        return seconds * 1e3

    def fresh(self) -> float:
        return self.ask(self.talk, 0)

    def alone(self) -> float:
        return self.ask(self.draw(self.question), 0)

    def branch(self) -> float:
        return self.ask(self.asked(), self.context.size)

    def turn(self) -> float:
        before = self.talk
        self.talk = np.concatenate([before, self.draw(self.question)])
        return self.ask(self.talk, before.size)

    def suffix(self, grows: bool) -> Callable[[], float]:
        """Returns what samples the reference, on a session that holds the context already, or (grows) that and the
        questions of earlier samples, as a talk's does."""
        generator = self.model.generator
        asked = self.asked()
        cache = generator.sessions.acquire(asked, asked.size + 1).cache
        if cache.length != self.context.size:
            raise SystemExit(f"the kept session gave {cache.length} tokens instead of {self.context.size}")

        def sample() -> float:
            start = time.perf_counter()
            generator.engine.forward([(cache, self.draw(self.question), False)])
            seconds = time.perf_counter() - start
            if not grows:
                cache.truncate(self.context.size)
            return seconds * 1e3

        return sample


def measure(model: Any, context: int, question: int, branches: int, rounds: int) -> dict[str, Any]:
    """Returns medians in milliseconds, ratios to the reference, and the megabytes of one question and of several."""
    asker = Asker(model, context, question)
    fresh = asker.fresh()
    one = model.memory()["kv_bytes"]
    model.generate([asker.asked() for _ in range(branches - 1)], **OPTIONS)
    row = {"one_mb": round(one / 1e6, 1), f"{branches}_mb": round(model.memory()["kv_bytes"] / 1e6, 1)}
    ways = {"branch_least": asker.suffix(False), "branch": asker.branch, "turn_least": asker.suffix(True)}
    ways |= {"turn": asker.turn, "alone": asker.alone}
    samples = common.interleave(ways, rounds)
    row |= {f"{name}_ms": round(common.median(values), 1) for name, values in samples.items()} | {"fresh_ms": fresh}
    return row | {f"{n}_ratio": f"{common.ratio(samples[n], samples[f'{n}_least']):.2f}" for n in ("branch", "turn")}


def main() -> None:
    parser = common.model_parser(__doc__, rounds=5)
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--question", type=int, default=32)
    parser.add_argument("--branches", type=int, default=8)
    args = parser.parse_args()
    rows = []
    for shape, model in common.models_of(args):
        for context in args.contexts:
            row = measure(model, context, args.question, args.branches, args.rounds)
            rows.append({"shape": shape, "format": args.format, "context": context, **row})
    common.report("prefix", rows, args.json, threads=args.threads)


if __name__ == "__main__":
    main()
