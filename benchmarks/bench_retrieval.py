"""Does an embedder still find the right passages in 8 and 4 bits? nDCG@10 and recall@100 per format on real sets.

Sets in BEIR's layout below --data/retrieval: corpus.jsonl (title and text are joined), queries.jsonl, qrels/test.tsv.
Every passage is scored by cosine, exactly. The gain of a passage is its judgement, as trec_eval counts it. `change` is
relative to sentence-transformers in fp32 where that is installed beside lowbit, else to lowbit's own fp32; the smallest
cosine is that of a passage's vector with the reference's.

    python benchmarks/bench_retrieval.py --sets cranfield xquad-en      # prints a Markdown table
"""

import csv
import json
import sys
from pathlib import Path

import _common as common
import _embedders as embedders
import numpy as np

TOP = 100  # passages kept per query; nDCG looks at the first 10 of them


class RetrievalSet:
    """Passages, queries and judgements of a folder; only queries with a judgement are asked."""

    def __init__(self, folder: Path) -> None:
        corpus = _lines(folder / "corpus.jsonl")
        self.passages = [f"{row.get('title', '')} {row['text']}".strip() for row in corpus]
        position = {row["_id"]: i for i, row in enumerate(corpus)}
        judged: dict[str, dict[int, float]] = {}
        with open(folder / "qrels" / "test.tsv", newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                gains = judged.setdefault(row["query-id"], {})
                if float(row["score"]) > 0:
                    gains[position[row["corpus-id"]]] = float(row["score"])
        asked = [row for row in _lines(folder / "queries.jsonl") if judged.get(row["_id"])]
        self.queries = [row["text"] for row in asked]
        self.judgements = [judged[row["_id"]] for row in asked]


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def ndcg(found: list[int], gains: dict[int, float], k: int = 10) -> float:
    """Returns the discounted gain of the first k found over that of the best order; 0 to 1.

    Järvelin & Kekäläinen 2002, with linear gains and log2(rank + 1), as trec_eval and BEIR have it.
    """
    discounts = 1 / np.log2(np.arange(2, k + 2))
    best = sorted(gains.values(), reverse=True)[:k]
    gained = [gains.get(i, 0.0) for i in found[:k]]
    return float(np.dot(gained, discounts[: len(gained)]) / np.dot(best, discounts[: len(best)]))


def recall(found: list[int], gains: dict[int, float], k: int = TOP) -> float:
    """Returns which part of the relevant passages is among the first k."""
    return len(set(found[:k]) & set(gains)) / len(gains)


def search(queries: np.ndarray, passages: np.ndarray, k: int = TOP) -> np.ndarray:
    """Returns the k nearest passages of each query, best first, int [queries, k]; equal scores in corpus order."""
    scores = queries @ passages.T
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def main() -> None:
    args = embedders.parser(__doc__).parse_args()
    folders = sorted(path.parent for path in (args.data / "retrieval").glob("*/corpus.jsonl"))
    folders = [folder for folder in folders if args.sets is None or folder.name in args.sets]
    if not folders:
        print(f"no retrieval sets in {args.data / 'retrieval'}; name their parent folder with --data", file=sys.stderr)
        return
    systems = embedders.encoders(args)
    rows = []
    for folder in folders:
        data = RetrievalSet(folder)
        first: tuple[np.ndarray, float] | None = None
        for name, encode in systems.items():
            passages, seconds = embedders.timed(encode, data.passages)
            found = search(encode(data.queries), passages).tolist()
            pairs = list(zip(found, data.judgements, strict=True))
            value = float(np.mean([ndcg(*pair) for pair in pairs]))
            first = first or (passages, value)
            rows.append(
                {
                    "set": folder.name,
                    "system": name,
                    "passages": len(data.passages),
                    "queries": len(data.queries),
                    "ndcg10": round(value, 4),
                    "change_percent": round(100 * (value / first[1] - 1), 2) + 0.0,  # never -0
                    "recall100": round(float(np.mean([recall(*pair) for pair in pairs])), 4),
                    "smallest_cosine": embedders.smallest_cosine(passages, first[0]),
                    "seconds": round(seconds, 1),
                }
            )
            print(" ".join(f"{key} {value}" for key, value in rows[-1].items()), file=sys.stderr, flush=True)
    print(embedders.table(rows, "ndcg10", "change_percent", " %"))
    common.report("retrieval", rows, args.json, reference=next(iter(systems)))


if __name__ == "__main__":
    main()
