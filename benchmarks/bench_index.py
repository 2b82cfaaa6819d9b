"""What do 100 000 passages cost, and what do faster indexes miss? `lowbit embed`, then flat, IVF and HNSW side by side.

The passages are runs of `--words` words, each a fourth overlapping the one before, out of every English text below
--data; the queries are those of its retrieval sets. First a process of its own embeds them: passages/s, peak memory of
the process, and with --out a folder to go on with. Then every index is built of the same vectors and asked every query,
one at a time on one thread: recall@10 is the share of the 10 nearest by the flat index, which compares with every
vector, that it finds too.

    python benchmarks/bench_index.py --passages 100000 --out bench-corpus
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import _common as common
import _embedders as embedders
import numpy as np

import lowbit
from lowbit.corpus import BLOCK, Corpus, build_index
from lowbit.vector_folder import load
from lowbit.vector_index import VectorIndex, require_faiss

K = 10
INDEXES: list[tuple[str, dict[str, int]]] = [
    ("flat", {}),
    ("ivf", {}),
    ("ivf", {"nprobe": 16}),
    ("ivf", {"nprobe": 32}),
    ("ivf", {"nprobe": 128}),
    ("hnsw", {}),
    ("hnsw", {"ef_search": 16}),
    ("hnsw", {"ef_search": 256}),
]


def texts(data: Path) -> Iterator[str]:
    """Yields every English text of the evaluation data."""
    for path in sorted(data.glob("retrieval/*/corpus.jsonl")):
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                yield f"{row.get('title', '')} {row['text']}"
    for name in ("wikitext-2", "tinystories", "tinyshakespeare"):
        for path in sorted((data / "corpora" / name).glob("*.txt")):
            yield path.read_text(encoding="utf-8")


def passages(data: Path, words: int) -> Iterator[str]:
    """Yields runs of words of every text."""
    for text in texts(data):
        all_words = text.split()
        for start in range(0, max(1, len(all_words) - words // 4), words * 3 // 4):
            yield " ".join(all_words[start : start + words])


def queries(data: Path) -> list[str]:
    """Returns the queries of the retrieval sets."""
    lines = [line for path in sorted(data.glob("retrieval/*/queries.jsonl")) for line in path.open(encoding="utf-8")]
    return [json.loads(line)["text"] for line in lines]


def embed(file: Path, folder: Path, model: str, args: Any) -> dict[str, Any]:
    """Returns passages/s and the peak memory in MB of `lowbit embed` in a process of its own."""
    command = [sys.executable, "-m", "lowbit.cli", "embed", file, "--out", folder, "--model", model, "--index", "none"]
    if args.threads:
        command += ["--threads", str(args.threads)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    start = time.perf_counter()
    process = subprocess.Popen([*map(str, command)], stdout=sys.stderr, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit("lowbit embed failed")
    seconds, count = time.perf_counter() - start, args.passages
    cpu = usage.ru_utime + usage.ru_stime
    return {
        "seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), "passages_s": round(count / seconds, 1),
        "passages_cpu_s": round(count / cpu, 1), "peak_mb": round(usage.ru_maxrss / 1024),
    }  # fmt: skip


def built(corpus: Corpus, kind: str) -> tuple[VectorIndex, float, float]:
    """Returns the index that the folder gets, the seconds it took to build and its file's MB."""
    start = time.perf_counter()
    build_index(corpus.folder, kind)
    seconds = time.perf_counter() - start
    index, _, manifest = load(corpus.folder)
    return index, seconds, (corpus.folder / manifest["files"]["index"]["name"]).stat().st_size / 1e6


def asked(index: VectorIndex, vectors: np.ndarray) -> tuple[list[set[int]], float]:
    """Returns the keys found for each vector and milliseconds per query."""
    faiss = require_faiss()
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    index.search(vectors[0], K)
    start = time.perf_counter()
    found = [set(index.search(vector, K)[0].tolist()) for vector in vectors]
    seconds = time.perf_counter() - start
    faiss.omp_set_num_threads(threads)
    return found, seconds / len(vectors) * 1e3


def main() -> None:
    parser = embedders.parser(__doc__)
    parser.add_argument("--passages", type=int, default=5000)
    parser.add_argument("--words", type=int, default=24)
    parser.add_argument("--out", type=Path, help="keep the embedded corpus here, and go on with it")
    args = parser.parse_args()
    if not (args.data / "retrieval").exists():
        print(f"no texts in {args.data}: nothing measured")
        return
    model = args.model or embedders.default_model(args.data)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.out or Path(temporary) / "corpus"
        file = Path(temporary) / "passages.jsonl"
        with file.open("w", encoding="utf-8") as out:
            for text in islice(passages(args.data, args.words), args.passages):
                out.write(json.dumps({"text": text}) + "\n")
        embedding = embed(file, folder, model, args)
        corpus = Corpus.open(folder)
        if args.threads:
            require_faiss().omp_set_num_threads(args.threads)
        asking = lowbit.Embedder(model, threads=args.threads).encode(queries(args.data))
        rows: list[dict[str, Any]] = []
        exact: list[set[int]] = []
        index, seconds, megabytes, last = None, 0.0, 0.0, ""
        for kind, options in INDEXES:
            if kind != last:
                index, seconds, megabytes = built(corpus, kind)
                last, own = kind, dict(index.options)
            assert index is not None
            index.options = own | options
            found, milliseconds = asked(index, asking)
            exact = exact or found
            recall = sum(len(a & b) for a, b in zip(found, exact, strict=True)) / sum(map(len, exact))
            rows.append({
                "index": kind,
                "options": " ".join(f"{name}={value}" for name, value in index.options.items()),
                "recall_at_10_%": f"{100 * recall:.2f}",
                "query_ms": f"{milliseconds:.2f}",
                "build_s": round(seconds, 1),
                "file_mb": round(megabytes, 1),
            })  # fmt: skip
    shape = {"passages": len(corpus), "dimension": corpus.vectors.shape[1], "queries": len(asking), "block": BLOCK}
    common.report("index", rows, args.json, **shape, **embedding)


if __name__ == "__main__":
    main()
