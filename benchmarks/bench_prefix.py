"""How soon does an answer begin when the prompt's beginning is known, and what do sessions that share one hold?

First-token milliseconds, interleaved, for a context of `--context` tokens and a question of `--question` tokens: the
question alone; context and question with nothing kept; a further question that branches off the kept context (a fork);
a next turn that goes on where a kept session ends. Then the memory of `--branches` questions over one context.

    python benchmarks/bench_prefix.py --models /tmp/models --shapes llama-1b
"""

import time

import _common as common
import numpy as np

import lowbit

OPTIONS = {"temperature": 0, "ignore_eos": True, "max_new_tokens": 1}


def main() -> None:
    parser = common.model_parser(__doc__, rounds=5)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--question", type=int, default=32)
    parser.add_argument("--branches", type=int, default=8)
    args = parser.parse_args()
    rows = []
    for shape, model in common.models_of(args):
        rng = np.random.default_rng(0)

        def draw(count: int, rng=rng, size=model.spec.vocab_size) -> np.ndarray:
            return rng.integers(300, size, count, dtype=np.int32)

        context = draw(args.context)

        def ask(prompt: np.ndarray, cached: int, model=model) -> float:
            start = time.perf_counter()
            done = model.generate(prompt, **OPTIONS)
            seconds = time.perf_counter() - start
            assert isinstance(done, lowbit.text.Completion)
            if done.cached_tokens != cached:
                raise SystemExit(f"{done.cached_tokens} tokens came from a kept session instead of {cached}")
            return seconds * 1e3

        def alone(ask=ask, draw=draw) -> float:
            return ask(draw(args.question), 0)

        def fresh(ask=ask, draw=draw) -> float:
            return ask(np.concatenate([draw(args.context), draw(args.question)]), 0)

        def branch(ask=ask, draw=draw, context=context) -> float:
            return ask(np.concatenate([context, draw(args.question)]), args.context)

        def turn(ask=ask, draw=draw) -> float:
            before = draw(64)
            ask(before, 0)
            return ask(np.concatenate([before, draw(args.question)]), 64)

        ask(np.concatenate([context, draw(args.question)]), 0)
        ways = {"alone": alone, "fresh": fresh, "branch": branch, "turn": turn}
        samples = common.interleave(ways, args.rounds)
        row = {"shape": shape, "format": args.format}
        row |= {f"{name}_ms": round(common.median(values), 1) for name, values in samples.items()}
        row |= {f"{n}_ratio": round(common.ratio(samples[n], samples["alone"]), 2) for n in ("branch", "turn")}
        model.generator.sessions.clear()
        branch_prompts = [np.concatenate([context, draw(args.question)]) for _ in range(args.branches)]
        model.generate(branch_prompts[0], **OPTIONS)
        one = model.memory()["kv_bytes"]
        model.generate(branch_prompts[1:], **OPTIONS)
        row |= {"one_mb": round(one / 1e6, 1), f"{args.branches}_mb": round(model.memory()["kv_bytes"] / 1e6, 1)}
        rows.append(row)
    common.report("prefix", rows, args.json, threads=args.threads)


if __name__ == "__main__":
    main()
