"""What do the quantisers recover of a format's loss? Perplexity per format and quantiser on real trained models.

The models, texts and conventions of quality.py; calibration on 16,384 tokens of each model's own training text, which
the perplexity text is not part of.

    python benchmarks/quality_quantisers.py            # prints a Markdown table for each model
"""

import argparse
import sys
import time
from itertools import islice
from pathlib import Path

import _common as common
from quality import CASES, MAX_TOKENS, ROOT, with_bos

import lowbit
from lowbit.calibration import Quantiser
from lowbit.perplexity import perplexity, windows

FORMATS = ("sym_int3", "nf3", "sym_int4", "asym_int4", "nf4", "fp4", "sym_int5")
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
    parser.add_argument("--formats", nargs="+", default=[*FORMATS])
    parser.add_argument("--quantisers", nargs="+", choices=[*QUANTISERS], default=[*QUANTISERS])
    parser.add_argument("--models", nargs="+", help="names of cases (default: all)")
    parser.add_argument("--group-size", type=int)
    parser.add_argument("--tokens", type=int, default=MAX_TOKENS)
    parser.add_argument("--json", help="file for the figures, - for standard output")
    args = parser.parse_args()

    figures = []
    for case in CASES:
        folder = case.folder(args.data)
        if not folder.exists() or (args.models and case.name not in args.models):
            continue
        exact = lowbit.load(str(folder), low_bit="fp32")
        ids, sequences = calibration(case, args.data, exact), list(case.sequences(args.data, exact))
        best = perplexity(exact.logits, sequences, args.tokens).value
        print(f"\n{case.name}, fp32 {best:.4g}\n\n| format | {' | '.join(args.quantisers)} |")
        print("|---|" + "--:|" * len(args.quantisers), flush=True)
        for name in args.formats:
            cells = []
            for quantiser in args.quantisers:
                start = time.perf_counter()
                options = {"quantiser": QUANTISERS[quantiser](ids), "group_size": args.group_size}
                model = lowbit.load(str(folder), low_bit=name, **options)
                seconds = time.perf_counter() - start
                value = perplexity(model.logits, sequences, args.tokens).value
                cells.append(f"{value:.4g}" if value >= 100 else f"{value:.3f}")
                figures.append(
                    {"model": case.name, "format": name, "quantiser": quantiser, "perplexity": round(value, 4),
                     "fp32": round(best, 4), "load_seconds": round(seconds, 2)}
                )  # fmt: skip
            print(f"| `{name}` | {' | '.join(cells)} |", flush=True)
    common.report("quality_quantisers", figures, args.json)


if __name__ == "__main__":
    main()
