"""How much faster is an answer that quotes its prompt, or that a draft model guesses, and what do guesses cost?

Synthetic weights quote nothing, so the answer is dictated by a constraint: pieces of the prompt of `--piece` tokens,
and `--between` new tokens after each, as answers from retrieved documents have them. Everything else is the real thing:
passes, drafts, verification. Beside it the same with new tokens only. Answers are checked to be what was dictated.
With `--draft SHAPE` the new tokens are guessed by a model of that shape, which really computes and is made to name the
next token right in a share of the cases (`--agree`).

    python benchmarks/bench_speculation.py --models /tmp/models --shapes llama-1b
"""

import time

import _common as common
import numpy as np

from lowbit.generate import Generator, Request
from lowbit.sampling import GenerationOptions
from lowbit.sessions import SessionPool
from lowbit.speculation import DraftModel


class Guesser:
    """A draft model's engine that takes its time and then names what comes next in `text`, right in a share `agree`."""

    def __init__(self, engine, text: np.ndarray, agree: float) -> None:
        self.engine, self.text = engine, text
        self.right = np.random.default_rng(0).random(text.size) < agree

    def __getattr__(self, name: str):
        return getattr(self.engine, name)

    def forward(self, parts):
        logits = self.engine.forward(parts)
        at = min(parts[0][0].length, self.text.size - 1)
        logits[0, self.text[at] if self.right[at] else self.text[at] - 1] = 1e4
        return logits


def dictated(answer: np.ndarray, vocab_size: int):
    """Returns a constraint that allows nothing but `answer`, token by token."""

    def allowed(output: np.ndarray) -> np.ndarray:
        words = np.zeros((vocab_size + 31) // 32, np.uint32)
        token = int(answer[output.size])
        words[token // 32] = 1 << (token % 32)
        return words

    return allowed


def answers(rng, prompt: np.ndarray, vocab_size: int, steps: int, piece: int, between: int) -> dict[str, np.ndarray]:
    """Returns an answer that quotes and one that does not, int32 [steps]."""
    new = rng.integers(300, vocab_size, 2 * steps, dtype=np.int32)
    parts: list[np.ndarray] = []
    while sum(p.size for p in parts) < steps:
        start = int(rng.integers(0, prompt.size - piece))
        parts += [prompt[start : start + piece], new[len(parts) * between : (len(parts) + 1) * between]]
    return {"quotes": np.concatenate(parts)[:steps], "new": new[steps:]}


def main() -> None:
    parser = common.model_parser(__doc__, rounds=3)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--piece", type=int, default=24, help="tokens of a quoted piece")
    parser.add_argument("--between", type=int, default=6, help="new tokens between two pieces")
    parser.add_argument("--draft", metavar="SHAPE", help="shape of a draft model")
    parser.add_argument("--agree", type=float, nargs="+", default=[0.6, 0.8, 0.9], help="shares of right guesses")
    args = parser.parse_args()
    rows = []
    shapes, draft = args.shapes, None
    if args.draft:
        args.shapes = [args.draft]
        _, draft = next(common.models_of(args))
        args.shapes = shapes
    for shape, model in common.models_of(args):
        engine = model.generator.engine
        rng = np.random.default_rng(0)
        prompt = rng.integers(300, engine.vocab_size, args.prompt, dtype=np.int32)
        texts = answers(rng, prompt, engine.vocab_size, args.steps, args.piece, args.between)

        def sample(generator, kind: str, speculate: bool, engine=engine, prompt=prompt, texts=texts) -> float:
            options = GenerationOptions(max_new_tokens=args.steps, temperature=0, speculate=speculate)
            request = Request(prompt, options, (), dictated(texts[kind], engine.vocab_size))
            with generator.start([request]) as batch:  # the prompt is in a kept session after the first time
                got = [next(batch).token]
                start = time.perf_counter()
                got += [event.token for event in batch]
                seconds = time.perf_counter() - start
            if got != texts[kind].tolist():
                raise SystemExit("the answer is not what was dictated")
            return (args.steps - 1) / seconds

        plain = Generator(engine)
        variants = {(kind, on): lambda g=plain, k=kind, o=on: sample(g, k, o) for kind in texts for on in (False, True)}
        for agree in args.agree if draft else []:
            guesser = Guesser(draft.generator.engine, np.concatenate([prompt, texts["new"]]), agree)
            cost = draft.memory()["weights_bytes"] / model.memory()["weights_bytes"]
            drafting = DraftModel(guesser, SessionPool(guesser), engine.vocab_size, cost)
            guessed = Generator(engine, draft_model=drafting)
            variants["new", agree] = lambda g=guessed: sample(g, "new", None)
        samples = common.interleave(variants, args.rounds)
        row = {"shape": shape, "format": args.format, "draft": engine.exact_tokens - 1}
        for kind in texts:
            row[f"{kind}_tok_s"] = round(common.median(samples[kind, True]), 1)
            row[f"{kind}_ratio"] = f"{common.ratio(samples[kind, True], samples[kind, False]):.2f}"
        for agree in args.agree if draft else []:
            row[f"guessed_{agree:g}_ratio"] = f"{common.ratio(samples['new', agree], samples['new', False]):.2f}"
        rows.append(row)
    common.report("speculation", rows, args.json, threads=args.threads)


if __name__ == "__main__":
    main()
