"""What do constrained answers cost per token?

Reports for vocabularies of several sizes the time to read one (once per model), to compile a grammar (once per
grammar), and of the mask before each token: along a written answer the first time and again, and along dice, which
reach states that no model would. CPU time, so that other jobs do not count. Masks are computed between steps, so this
is all of the overhead; `--step-ms` says what a step takes without (20 ms: 1 B shape, two cores), `--model` measures it:
steps of a low-bit folder with and without, in turn.

    python benchmarks/bench_grammar.py --vocabulary 32000 151936
    python benchmarks/bench_grammar.py --tiktoken cl100k_base.tiktoken    # a real one
"""

import argparse
import base64
import json
import time
from pathlib import Path

import _common as common
import numpy as np
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

import lowbit
from lowbit.grammar import Constraint, compile_over
from lowbit.grammar_vocabulary import Vocabulary
from lowbit.tokenizer import Tokenizer

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 60},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["new", "old", "paid", "due"]}, "maxItems": 5},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
            "required": ["street", "zip"],
            "additionalProperties": False,
        },
        "notes": {"type": "string"},
    },
    "required": ["name", "age", "tags", "address", "notes"],
    "additionalProperties": False,
}
ANSWER = {
    "name": "Jürgen Müller-Lüdenscheidt", "age": 42, "tags": ["new", "paid"],
    "address": {"street": "Hauptstraße 12, Hinterhaus", "zip": "10115"},
    "notes": "He asked twice about the invoice of last month, \"the big one\", and wants it by mail.",
}  # fmt: skip
CASES = {
    "schema": ("json_schema", PERSON, json.dumps(ANSWER, ensure_ascii=False)),
    "any JSON": ("json_schema", {"type": "object"}, json.dumps(ANSWER, indent=2, ensure_ascii=False)),
    "regex": ("regex", r"(\d{4}-\d{2}-\d{2}: [a-zA-Z ,.]{1,80}\n){1,10}", "2024-02-29: A day that is not often.\n" * 3),
    "choice of 1000": ("choice", [f"answer number {n} of many" for n in range(1000)], "answer number 777 of many"),
}


def byte_level(tokens: list[bytes]) -> Tokenizer:
    """Returns a byte-level tokenizer whose ids are those of a list, and one more to end with."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    letters = {**{b: chr(b) for b in printable}, **{b: chr(256 + n) for n, b in enumerate(others)}}
    vocab = {"".join(letters[b] for b in token): i for i, token in enumerate(tokens)}
    backend = Backend(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("</s>", special=True)])
    return Tokenizer(backend, {}, {"eos_token": "</s>"})


def made_up(size: int) -> list[bytes]:
    """Returns tokens as byte-level vocabularies have them: bytes, JSON's joints, numbers, words with and without a
    space, and a tenth of other scripts; seeded."""
    rng = np.random.default_rng(1)
    joints = ['{"', '":', '": "', '",', '", "', '"}', '"]', '["', "},", "}}", "]}", "\n  ", "\n    ", ": ", ", ", "\\n"]
    tokens = dict.fromkeys([*(bytes([b]) for b in range(256)), *(t.encode() for t in joints)])
    tokens |= dict.fromkeys(str(n).encode() for n in range(1000))
    parts = ["a", "e", "i", "o", "u", "st", "r", "n", "th", "ing", "er", "l", "m", "c", "d", "p", "b", "k", "ion", "S"]
    while len(tokens) < size - 1:
        if rng.random() < 0.1:
            word = "".join(chr(c) for c in rng.integers(0x4E00, 0x9FA0, rng.integers(1, 4)))
        else:
            word = " " * int(rng.integers(2)) + "".join(rng.choice(parts, rng.integers(1, 7)))
        tokens[word.encode()] = None
    return list(tokens)


def tiktoken(path: str) -> list[bytes]:
    """Returns the tokens of a .tiktoken file, by rank."""
    return [base64.b64decode(line.split()[0]) for line in Path(path).read_bytes().splitlines() if line]


def along(constraint: Constraint, text: bytes, eos: int, ids: dict[bytes, int]) -> list[float]:
    """Returns the seconds before each token of an answer (the longest allowed): taking in the one before, the mask."""
    guide = constraint.guide([eos])
    output: list[int] = []
    seconds = []
    while text:
        so_far = np.array(output, np.int32)
        start = time.thread_time()
        words = guide(so_far)
        seconds.append(time.thread_time() - start)
        known = [n for n in range(min(len(text), 40), 0, -1) if text[:n] in ids]
        length = next(n for n in known if words[ids[text[:n]] // 32] >> ids[text[:n]] % 32 & 1)
        output.append(ids[text[:length]])
        text = text[length:]
    return seconds


def by_dice(constraint: Constraint, eos: int, size: int, steps: int, seed: int) -> list[float]:
    """Returns the seconds before each token of answers that dice give."""
    rng = np.random.default_rng(seed)
    seconds: list[float] = []
    output = np.empty(steps, np.int32)
    guide, length = constraint.guide([eos]), 0
    while len(seconds) < steps:
        start = time.thread_time()
        words = guide(output[:length])
        seconds.append(time.thread_time() - start)
        allowed = np.nonzero(np.unpackbits(words.view(np.uint8), bitorder="little")[:size])[0]
        token = int(rng.choice(allowed))
        if token == eos:
            guide, length = constraint.guide([eos]), 0
        else:
            output[length] = token
            length += 1
    return seconds


def measure(tokens: list[bytes], name: str, step_ms: float, steps: int) -> list[dict]:
    """Returns a row per case."""
    tokenizer = byte_level(tokens)
    eos, size = len(tokens), len(tokens) + 1
    ids = {token: i for i, token in enumerate(tokens)}
    start = time.process_time()
    vocabulary = Vocabulary(tokenizer, size)
    read = time.process_time() - start
    rows = []
    for case, (kind, value, text) in CASES.items():
        start = time.thread_time()
        constraint = compile_over(vocabulary, kind, value)
        constraint.guide([eos])
        compiled = time.thread_time() - start
        first = along(constraint, text.encode(), eos, ids)
        again = [s for _ in range(5) for s in along(constraint, text.encode(), eos, ids)]
        dice = by_dice(constraint, eos, size, steps, 1)
        rows.append({
            "vocabulary": name, "case": case, "read_ms": read * 1e3, "compile_ms": compiled * 1e3, "tokens": len(first),
            "first_us": np.mean(first) * 1e6, "again_us": np.mean(again) * 1e6, "dice_us": np.mean(dice) * 1e6,
            "worst_us": max(first + again + dice) * 1e6,
            "percent_of_step": 100 * np.mean(first) * 1e3 / step_ms,
        })  # fmt: skip
    return [{key: float(v) if isinstance(v, np.floating) else v for key, v in row.items()} for row in rows]


def in_steps(folder: str, steps: int, rounds: int, threads: int | None) -> list[dict]:
    """Returns milliseconds of a step of a low-bit folder, free and constrained in turn, prefill excluded."""
    from lowbit.loading import load_model

    runtime = lowbit.Runtime(threads=threads).resolve()
    loaded = load_model(folder, runtime=runtime)
    model = lowbit.TextModel(loaded, runtime, tokenizer=byte_level(made_up(loaded.spec.vocab_size)))
    eos = loaded.spec.vocab_size - 1
    text = {"type": "string", "minLength": 8 * steps}
    schema = {"type": "object", "properties": {"text": text}, "required": ["text"]}
    variants = {
        "free": {"suppress_tokens": [eos]}, "schema": {"json_schema": schema},
        "regex": {"regex": f"[a-zA-Z ]{{{8 * steps},}}"},
    }  # fmt: skip

    def sample(options: dict, seed: list[int] = [0]) -> float:  # noqa: B006 counts the calls: no prompt comes twice
        seed[0] += 1
        times = []
        prompt = [300 + seed[0], *range(500, 516)]
        deltas = model.stream(prompt, eos_token_id=eos, max_new_tokens=steps, temperature=1.0, seed=1, **options)
        for _ in deltas:
            times.append(time.perf_counter())
        return (times[-1] - times[0]) / (len(times) - 1) * 1e3

    taken = common.interleave({name: lambda o=options: sample(o) for name, options in variants.items()}, rounds)
    return [
        {
            "vocabulary": folder, "case": name, "step_ms": common.median(values),
            "percent_more": 100 * (common.ratio(values, taken["free"]) - 1),
        }
        for name, values in taken.items()
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", nargs="*", type=int, default=[32000, 151936], help="sizes of made-up ones")
    parser.add_argument("--tiktoken", help="a .tiktoken file to measure, too")
    parser.add_argument("--steps", type=int, default=300, help="tokens by dice, and of --model")
    parser.add_argument("--step-ms", type=float, default=20.0, help="what a step takes without")
    parser.add_argument("--model", help="a low-bit folder (make_model.py, lowbit convert) to measure steps of")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", help="file for the figures, - for standard output")
    args = parser.parse_args()
    rows = []
    for size in args.vocabulary:
        rows += measure(made_up(size), str(size), args.step_ms, args.steps)
    if args.tiktoken:
        tokens = tiktoken(args.tiktoken)
        rows += measure(tokens, f"{Path(args.tiktoken).stem[:8]} ({len(tokens)})", args.step_ms, args.steps)
    if rows:
        common.report("grammar", rows, args.json, step_ms=args.step_ms)
    if args.model:
        common.report("grammar in steps", in_steps(args.model, args.steps, args.rounds, args.threads), args.json)


if __name__ == "__main__":
    main()
