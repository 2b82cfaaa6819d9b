"""How many texts per second does the encoder embed, and how long does one short query take?

Random weights in the shapes of bge-small and bge-base, token ids in and vectors out (tokenising is not timed). Formats
are sampled in turn in one process. Reports texts/s at `--batch` texts of `--tokens` tokens, texts/s of a mix of lengths
as passages have, and milliseconds for one text of 16 tokens, as median and best, the rate of multiply-adds in the
linear layers, with --phases the time by phase. The mix: 256 lengths of a log-normal distribution (median 60 tokens,
sigma 0.7, cut to 8 to 256; mean 73), sorted, in batches of 32, as all of them embed a list of texts.

With --rivals PYTHON (of an environment with torch, transformers, onnxruntime, openvino, nncf) each round also times
rivals/embed.py's kinds on the same shapes, in processes of their own that wait while others run. --keep DIR keeps their
converted models.

    python benchmarks/bench_embed.py --shapes bge-small bge-base --formats sym_int8 sym_int4
    python benchmarks/bench_embed.py --formats sym_int8 --rivals ENV/bin/python
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import _common as common
import numpy as np

from lowbit import ops
from lowbit.models import EncoderSpec
from lowbit.quantize import quantize
from lowbit.runtime import Runtime
from lowbit.tensor_formats import TensorFormats

SHAPES = {
    "bge-small": {"hidden_size": 384, "layers": 12, "heads": 12, "ffn_size": 1536},
    "bge-base": {"hidden_size": 768, "layers": 12, "heads": 12, "ffn_size": 3072},
}
RIVALS = ["torch-fp32", "torch-bf16", "onnx-fp32", "onnx-int8", "openvino-fp32", "openvino-bf16", "openvino-int8"]
VOCAB = 30522
QUERY_TOKENS, QUERIES = 16, 20
RATES = {"full": "texts_s", "mix": "mix_texts_s", "query": "query_ms"}


def spec_of(shape: str) -> EncoderSpec:
    """Returns a BERT of that shape."""
    sizes = SHAPES[shape]
    head_dim = sizes["hidden_size"] // sizes["heads"]
    return EncoderSpec(family="bert", vocab_size=VOCAB, head_dim=head_dim, context=512, token_types=2, **sizes)


def tensors_of(spec: EncoderSpec, low_bit: str, seed: int = 0) -> dict[str, Any]:
    """Returns random weights in the formats and groups that an Embedder has in that format."""
    random = np.random.default_rng(seed)
    hidden, ffn = spec.hidden_size, spec.ffn_size
    formats = TensorFormats.choose(low_bit, None, None, None, None, task="embed")
    body, outer = formats.body, formats.embedding
    assert body is not None
    assert outer is not None
    tensors: dict[str, Any] = {}

    def matrix(name: str, rows: int, k: int) -> None:
        weight = random.standard_normal((rows, k), np.float32) / np.float32(k**0.5)
        tensors[f"{name}.weight"] = quantize(weight, body)
        tensors[f"{name}.bias"] = random.standard_normal(rows, np.float32) * np.float32(0.1)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = np.ones(hidden, np.float32), np.zeros(hidden, np.float32)

    for name, rows in (("embedding", VOCAB), ("position_embedding", spec.context), ("token_type_embedding", 2)):
        tensors[f"{name}.weight"] = quantize(random.standard_normal((rows, hidden), np.float32), outer)
    norm("embedding_norm")
    for i in range(spec.layers):
        at = f"layers.{i}"
        matrix(f"{at}.qkv", 3 * hidden, hidden)
        matrix(f"{at}.o", hidden, hidden)
        matrix(f"{at}.up", ffn, hidden)
        matrix(f"{at}.down", hidden, ffn)
        norm(f"{at}.attention_norm")
        norm(f"{at}.ffn_norm")
    return tensors


def mixed_lengths() -> list[list[int]]:
    """Returns the lengths of the mix, longest first, in batches."""
    drawn = np.random.default_rng(2).lognormal(np.log(60), 0.7, 256)
    lengths = sorted((int(n) for n in drawn.clip(8, 256)), reverse=True)
    return [lengths[i : i + 32] for i in range(0, len(lengths), 32)]


def texts_of(lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns token ids of texts and where each ends."""
    ids = np.random.default_rng(1).integers(1000, VOCAB, sum(lengths)).astype(np.int32)
    return ids, np.cumsum(lengths, dtype=np.int64)


class Rival:
    """A process of another environment that embeds the same shape when it is told to."""

    def __init__(self, python: str, kind: str, shape: str, threads: int, keep: Path) -> None:
        script = Path(__file__).parent / "rivals" / "embed.py"
        command = [python, str(script), kind, json.dumps(SHAPES[shape]), str(threads), str(keep / shape)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "ready":
            raise RuntimeError(f"{kind} did not start: run {' '.join(command[:3])} ... by hand to see why")

    def seconds(self, batches: list[list[int]]) -> float:
        """Returns the seconds of a call for each of these batches."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        total = 0.0
        for lengths in batches:
            self._process.stdin.write(f"{json.dumps(lengths)}\n")
            self._process.stdin.flush()
            total += float(self._process.stdout.readline())
        return total

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


def rate(work: str, batches: list[list[int]], seconds: float) -> float:
    """Returns milliseconds per text for queries, texts per second for other works."""
    texts = sum(map(len, batches))
    return round(seconds / texts * 1e3, 2) if work == "query" else round(texts / seconds, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--formats", nargs="+", default=["sym_int8", "sym_int4"])
    parser.add_argument("--compute", choices=("int8", "fp32"), default="int8")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--works", nargs="+", choices=RATES, default=list(RATES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tier")
    parser.add_argument("--phases", action="store_true", help="seconds by phase of one batch")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: with --threads 1, for a machine others share"
    )
    parser.add_argument("--rivals", metavar="PYTHON", help="interpreter of an environment that has the rivals")
    parser.add_argument("--kinds", nargs="+", default=RIVALS, help="rivals to run")
    parser.add_argument("--keep", metavar="DIR", help="keeps the rivals' converted models between runs")
    parser.add_argument("--json", help="also write the figures to this file; - for standard output")
    args = parser.parse_args()
    runtime = Runtime(threads=args.threads, tier=args.tier, compute=args.compute).resolve()
    works = {"full": [[args.tokens] * args.batch], "mix": mixed_lengths(), "query": [[QUERY_TOKENS]] * QUERIES}
    works = {name: works[name] for name in args.works}
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    rows = []
    for shape in args.shapes:
        spec = spec_of(shape)
        encoders = {
            f: ops.encoder(spec.to_dict(), tensors_of(spec, f), args.compute, runtime.tier) for f in args.formats
        }

        def seconds(encoder: Any, batches: list[tuple[np.ndarray, np.ndarray]]) -> float:
            start = clock()
            for texts in batches:
                ops.embed(encoder, *texts, None, ("mean",), runtime.pool)
            return clock() - start

        with tempfile.TemporaryDirectory() as scratch:
            kinds = args.kinds if args.rivals else ()
            keep = Path(args.keep or scratch).resolve()
            rivals = {kind: Rival(args.rivals, kind, shape, runtime.threads, keep) for kind in kinds}
            samples = {}
            for work, batches in works.items():
                ids = [texts_of(lengths) for lengths in batches]
                samples[work] = common.interleave(
                    {f: lambda e=e, ids=ids: seconds(e, ids) for f, e in encoders.items()}
                    | {kind: lambda r=r, batches=batches: r.seconds(batches) for kind, r in rivals.items()},
                    args.rounds,
                )
            for rival in rivals.values():
                rival.close()
        layer = 4 * spec.hidden_size**2 + 2 * spec.hidden_size * spec.ffn_size
        for name in (*encoders, *rivals):
            row: dict[str, Any] = {"shape": shape, "format": name}
            for work, batches in works.items():
                for end, least in (("", common.median), ("_best", min)):
                    row[RATES[work] + end] = rate(work, batches, least(samples[work][name]))
            if "full" in works:
                macs = spec.layers * layer * args.batch * args.tokens
                row["linear_gmac_s"] = round(macs / common.median(samples["full"][name]) / 1e9, 1)
            if args.phases and name in encoders:
                encoder = encoders[name]
                encoder.profile(True)
                seconds(encoder, [texts_of([args.tokens] * args.batch)])
                row["phase_ms"] = {p: round(s * 1e3, 2) for p, s in encoder.phase_seconds().items() if s}
                encoder.profile(False)
            rows.append(row)
    shape = {"batch": args.batch, "tokens": args.tokens, "clock": args.clock}
    common.report("embed", rows, args.json, threads=runtime.threads, tier=runtime.tier, **shape)


if __name__ == "__main__":
    main()
