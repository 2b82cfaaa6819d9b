"""What does the type of the KV cache cost in quality? Perplexity on real trained models, in percent over fp32 caches.

The models and texts of quality.py, weights and arithmetic in fp32, so that nothing else is rounded.

    python benchmarks/quality_kv.py --tokens 40000            # prints a Markdown table
"""

import argparse
from pathlib import Path

import _common as common
from quality import CASES, ROOT

import lowbit
from lowbit.perplexity import perplexity


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--kv", nargs="+", default=["int16", "fp16", "bf16", "int8"])
    parser.add_argument("--tokens", type=int, default=40_000)
    parser.add_argument("--json", help="file for the figures, - for standard output")
    args = parser.parse_args()
    rows = []
    print("| model | fp32 | " + " | ".join(args.kv) + " |\n|---|--:|" + "--:|" * len(args.kv))
    for case in CASES:
        folder = case.folder(args.data)
        if not folder.exists():
            continue
        values = {}
        for kv in ("fp32", *args.kv):
            model = lowbit.load(str(folder), low_bit=None, compute="fp32", kv_dtype=kv)
            values[kv] = perplexity(model.logits, case.sequences(args.data, model), args.tokens).value
        exact = values.pop("fp32")
        changes = {kv: 100 * (value / exact - 1) for kv, value in values.items()}
        cells = " | ".join(f"{change:+.3f} %" for change in changes.values())
        print(f"| {case.name} | {exact:.4f} | {cells} |", flush=True)
        rows.append({"model": case.name, "fp32": round(exact, 4), **{kv: round(c, 4) for kv, c in changes.items()}})
    common.report("quality_kv", rows, args.json)


if __name__ == "__main__":
    main()
