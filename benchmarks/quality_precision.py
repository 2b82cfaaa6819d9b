"""What do int8 activations cost in quality? Perplexity with precision "fast" and "auto", in percent over "high".

The models and texts of quality.py as they are, and with planted outliers (plant_outliers.py). Planted models are
rounded to sym_int8 only: fewer bits have no room for columns that are a hundred times smaller than their neighbours, so
that what is left of the model would be another one.

    python benchmarks/quality_precision.py --tokens 40000            # prints a Markdown table
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import _common as common
from plant_outliers import planted
from quality import CASES, ROOT, Case

import lowbit
from lowbit.perplexity import perplexity
from lowbit.precision import outlier_matrices


def compared(case: Case, folder: Path, name: str, low_bit: str, args: argparse.Namespace) -> dict:
    """Returns a row: the perplexity under "high", and in percent what the others change."""
    row: dict = {"model": name, "format": low_bit}
    for precision in ("high", "fast", "auto"):
        model = lowbit.load(str(folder), low_bit, precision=precision, threads=args.threads)
        value = perplexity(model.logits, case.sequences(args.data, model), args.tokens).value
        row[precision] = round(value if precision == "high" else 100 * (value / row["high"] - 1), 4)
    errors = model.loaded.activation_errors
    return row | {
        "bf16": f"{len(outlier_matrices(errors, 'auto'))} of {len(errors)}",
        "largest error": max(errors.values(), default=0.0),  # bf16 weights have none
    }


def rows(args: argparse.Namespace, scratch: Path) -> Iterator[dict]:
    for case in CASES:
        folder = case.folder(args.data)
        if not folder.exists() or (args.models and not any(word in case.name for word in args.models)):
            continue
        for low_bit in args.formats:
            yield compared(case, folder, case.name, low_bit, args)
        for factor in args.factors:
            copy = planted(folder, scratch / f"{folder.name}-{factor:g}", factor)
            yield compared(case, copy, f"{case.name} x {factor:g}", "sym_int8", args)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--models", nargs="*", help="parts of names (default: all)")
    parser.add_argument("--formats", nargs="+", default=["sym_int4", "nf4", "sym_int8"])
    parser.add_argument("--factors", nargs="*", type=float, default=[20, 200, 1000], help="of planted outliers")
    parser.add_argument("--tokens", type=int, default=40_000)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", help="file for the figures, - for standard output")
    args = parser.parse_args()
    print("| model | format | high | fast | auto | bf16 in auto |\n|---|---|--:|--:|--:|--:|")
    done = []
    with tempfile.TemporaryDirectory() as scratch:
        for row in rows(args, Path(scratch)):
            changes = f"{row['fast']:+.3f} % | {row['auto']:+.3f} %"
            print(f"| {row['model']} | `{row['format']}` | {row['high']:.4f} | {changes} | {row['bf16']} |", flush=True)
            done.append(row)
    common.report("quality_precision", done, args.json)


if __name__ == "__main__":
    main()
