"""Do cosines still order pairs of sentences as people do in 8 and 4 bits? Spearman's rank correlation per format.

Sets below --data/sts are CSV files of sentence1, sentence2, score. `change` is relative to sentence-transformers in
fp32 where that is installed beside lowbit, else to lowbit's own fp32; the smallest cosine is that of a sentence's
vector with the reference's.

    python benchmarks/bench_sts.py        # prints a Markdown table
"""

import csv
import sys
from pathlib import Path

import _common as common
import _embedders as embedders
import numpy as np


def read(path: Path) -> tuple[list[str], list[str], np.ndarray]:
    """Returns the first sentences, the second ones and the scores of a file."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return (
        [row["sentence1"] for row in rows],
        [row["sentence2"] for row in rows],
        np.array([float(row["score"]) for row in rows]),
    )


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Returns the correlation of ranks, -1 to 1; equal values share the mean of theirs."""

    def ranks(values: np.ndarray) -> np.ndarray:
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts - 1) / 2)[inverse]

    return float(np.corrcoef(ranks(x), ranks(y))[0, 1])


def main() -> None:
    args = embedders.parser(__doc__).parse_args()
    files = sorted((args.data / "sts").glob("*.csv"))
    files = [file for file in files if args.sets is None or file.stem in args.sets]
    if not files:
        print(f"no pairs of sentences in {args.data / 'sts'}; name the parent folder with --data", file=sys.stderr)
        return
    systems = embedders.encoders(args)
    rows = []
    for file in files:
        first, second, scores = read(file)
        base: tuple[np.ndarray, float] | None = None
        for name, encode in systems.items():
            vectors, seconds = embedders.timed(encode, first + second)
            value = spearman((vectors[: len(first)] * vectors[len(first) :]).sum(axis=1), scores)
            base = base or (vectors, value)
            rows.append(
                {
                    "set": file.stem,
                    "system": name,
                    "pairs": len(first),
                    "spearman": round(value, 4),
                    "change": round(value - base[1], 4) + 0.0,  # never -0
                    "smallest_cosine": embedders.smallest_cosine(vectors, base[0]),
                    "seconds": round(seconds, 1),
                }
            )
            print(" ".join(f"{key} {value}" for key, value in rows[-1].items()), file=sys.stderr, flush=True)
    print(embedders.table(rows, "spearman", "change", ""))
    common.report("sts", rows, args.json, reference=next(iter(systems)))


if __name__ == "__main__":
    main()
