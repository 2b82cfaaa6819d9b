"""What do the quantisers recover of a format's loss? Perplexity per format and quantiser on real trained models.

The models, texts and conventions of quality.py; calibration on 16,384 tokens of each model's own training text, which
the perplexity text is not part of.

    python benchmarks/quality_quantisers.py --json FILE     # prints a Markdown table for each model

Cells are kept in FILE as they are computed, and what stands there is not computed again: it can be stopped at any time.
"""

import argparse
import json
import sys
import time
from itertools import islice
from pathlib import Path

import _common as common
from quality import CASES, MAX_TOKENS, ROOT, with_bos

import lowbit
from lowbit.calibration import Quantiser
from lowbit.formats import FLOAT, FORMATS
from lowbit.perplexity import perplexity, windows

SCALED = [name for name, format in FORMATS.items() if format.codes != FLOAT]
CALIBRATION_SEED = 123_456_789  # of the embedded model's text
QUANTISERS = {
    "rtn": lambda ids: Quantiser(),
    "clip search": lambda ids: Quantiser(clip_search=True),
    "importance": lambda ids: Quantiser(calibration=ids),
    "awq": lambda ids: Quantiser("awq", calibration=ids),
    "teq": lambda ids: Quantiser("teq", calibration=ids),
    "gptq": lambda ids: Quantiser("gptq", calibration=ids),
}


def calibration(case, data: Path, model) -> list[list[int]]:
    """Returns token ids of the text a case's model was trained on."""
    if case.name == "embedded model":
        sys.path.insert(0, str(ROOT / "demo"))
        from text import documents

        texts = ("".join(piece for piece, _ in document) for document in islice(documents(CALIBRATION_SEED), 200))
        return [model.tokenizer.encode(text, add_special_tokens=False) for text in texts]
    if case.name.startswith("shakespeare"):
        text = (data / "corpora/tinyshakespeare/train.txt").read_text()[:40_000]
        return list(windows(model.tokenizer.encode(text, add_special_tokens=False), model.context))
    if case.name.startswith("zh"):
        return [with_bos(model, line) for line in (data / "corpora/zh-tang-poems/calib.txt").read_text().splitlines()]
    text = (data / "corpora/tinystories/calib.txt").read_text()
    return [with_bos(model, story) for story in text.split("\n<|endoftext|>\n")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--formats", nargs="+", default=SCALED)
    parser.add_argument("--quantisers", nargs="+", choices=[*QUANTISERS], default=[*QUANTISERS])
    parser.add_argument("--models", nargs="+", help="names of cases (default: all)")
    parser.add_argument("--group-size", type=int)
    parser.add_argument("--tokens", type=int, default=MAX_TOKENS)
    parser.add_argument("--json", type=Path, help="file of the figures, read first and added to")
    args = parser.parse_args()

    known: dict[str, dict] = {}
    if args.json and args.json.exists():
        known = json.loads(args.json.read_text())["cells"]
    for case in CASES:
        folder = case.folder(args.data)
        if not folder.exists() or (args.models and case.name not in args.models):
            continue
        exact = lowbit.load(str(folder), low_bit="fp32")
        ids, sequences = calibration(case, args.data, exact), list(case.sequences(args.data, exact))

        def cell(format: str, quantiser: str, case=case, folder=folder, ids=ids, sequences=sequences) -> str:
            key = f"{case.name}|{format}|{quantiser}|{args.group_size}|{args.tokens}"
            if key not in known:
                options = {} if format == "fp32" else {"quantiser": QUANTISERS[quantiser](ids), "precision": "fast"}
                start = time.perf_counter()
                model = lowbit.load(str(folder), low_bit=format, group_size=args.group_size, **options)
                seconds = time.perf_counter() - start
                value = perplexity(model.logits, sequences, args.tokens).value
                known[key] = {"perplexity": round(value, 4), "load_seconds": round(seconds, 2)}
                if args.json:
                    args.json.write_text(json.dumps({"machine": common.machine(), "cells": known}, indent=1))
            value = known[key]["perplexity"]
            return f"{value:.4g}" if value >= 100 else f"{value:.3f}"

        print(f"\n**{case.name}, fp32 {cell('fp32', 'rtn')}**\n\n| format | {' | '.join(args.quantisers)} |")
        print("|---|" + "--:|" * len(args.quantisers), flush=True)
        for name in args.formats:
            print(f"| `{name}` | {' | '.join(cell(name, q) for q in args.quantisers)} |", flush=True)


if __name__ == "__main__":
    main()
