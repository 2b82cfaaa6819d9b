"""How fast does a whole model decode, and how near is that to the memory bandwidth?

Synthetic models of real shapes (benchmarks/make_model.py), quantised once per format into a low-bit folder. Each
measurement runs in a fresh process and reports: seconds to open the folder, first-token milliseconds for a prompt of
`--prompt` tokens, tokens/s of single steps and of steps over `--batch` sessions, peak resident memory, and the weight
bytes read per second as a share of the multi-stream read bandwidth measured before and after in the same process.

    python benchmarks/bench_decode.py --shapes qwen2-0.5b llama-1b --formats sym_int4 nf4
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _common as common

import lowbit
from lowbit.loading import load_model
from lowbit.packed import PackedTensor
from lowbit.runtime import pool

READ_BYTES = 512 << 20  # of the bandwidth reference: far more than any cache


def weight_bytes_per_step(tensors: dict, tied_head: bool) -> int:
    """Returns the packed bytes that one step reads: every matrix, of which an untied embedding gives one row only."""
    packed = {name: tensor.data.nbytes for name, tensor in tensors.items() if isinstance(tensor, PackedTensor)}
    return sum(size for name, size in packed.items() if tied_head or not name.startswith("embedding."))


def measure(folder: str, prompt: int, steps: int, batch: int, threads: int | None, tier: str | None) -> dict:
    """Returns the figures of one low-bit folder, measured in this process."""
    start = time.perf_counter()
    runtime = lowbit.Runtime(threads=threads, tier=tier).resolve()
    loaded = load_model(folder, runtime=runtime)
    model = lowbit.TextModel(loaded, runtime)
    opened = time.perf_counter() - start
    ids = [(7919 * i) % (model.spec.vocab_size - 1000) + 500 for i in range(prompt)]
    options = {"temperature": 0, "ignore_eos": True, "speculate": False}

    def first_token() -> float:
        start = time.perf_counter()
        model.generate(ids, max_new_tokens=1, **options)
        return time.perf_counter() - start

    def step_seconds(prompts: list[list[int]]) -> float:
        """Seconds of one step over len(prompts) sessions, prefill excluded."""
        others = [[ids[0] + 10_000, *ids[1:]] for ids in prompts]  # the second call must prefill as much as the first
        short = time.perf_counter()
        model.generate(others, max_new_tokens=1, **options)
        short = time.perf_counter() - short
        long = time.perf_counter()
        model.generate(prompts, max_new_tokens=1 + steps, **options)
        long = time.perf_counter() - long
        return (long - short) / steps

    model.generate(ids[:8], max_new_tokens=4, **options)  # touches every weight once
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # before the bandwidth reference takes its share
    weights = weight_bytes_per_step(loaded.tensors, model.spec.tied_head)
    _, read = common.reader(pool(runtime.threads), common.buffer(READ_BYTES))
    # Prompts differ in their first token, so that no session is reused and each prefill is a real one.
    bandwidth = [read()]
    single = [step_seconds([[1000 + i, *ids[:31]]]) for i in range(5)]
    bandwidth.append(read())
    several = [step_seconds([[2000 + 16 * i + b, *ids[:31]] for b in range(batch)]) for i in range(3)]
    bandwidth.append(read())
    first = []
    for i in range(3):
        ids[0] = 3000 + i
        first.append(first_token())
    reference = statistics.median(bandwidth)
    step = statistics.median(single)
    return {
        "weight_mb": round(weights / 1e6, 1),
        "open_s": round(opened, 3),
        "first_token_ms": round(statistics.median(first) * 1e3, 1),
        "prefill_tok_s": round(prompt / statistics.median(first), 1),
        "decode_tok_s": round(1 / step, 2),
        f"decode_b{batch}_tok_s": round(batch / statistics.median(several), 2),
        "weight_gb_s": round(weights / step / 1e9, 2),
        "read_gb_s": round(reference, 2),
        "share_of_bandwidth": round(weights / step / 1e9 / reference, 3),
        "peak_rss_mb": round(peak / 1e6, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["qwen2-0.5b", "llama-1b"])
    parser.add_argument("--formats", nargs="+", default=["sym_int4", "nf4"])
    parser.add_argument("--models", help="folder that keeps the synthetic models between runs (default: temporary)")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tier")
    parser.add_argument("--json", help="file for the figures, - for standard output")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # measure this folder and print JSON
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.prompt, args.steps, args.batch, args.threads, args.tier)))
        return

    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(args.models or scratch)
        for shape in args.shapes:
            for name in args.formats:
                folder = common.low_bit_folder(shape, name, root)
                command = [sys.executable, __file__, "--one", str(folder), "--prompt", str(args.prompt)]
                command += ["--steps", str(args.steps), "--batch", str(args.batch)]
                command += ["--threads", str(args.threads)] if args.threads else []
                command += ["--tier", args.tier] if args.tier else []
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                rows.append({"shape": shape, "format": name, **json.loads(done.stdout.splitlines()[-1])})
                print(json.dumps(rows[-1]), flush=True)
    common.report("decode", rows, args.json, threads=args.threads, tier=args.tier)


if __name__ == "__main__":
    main()
