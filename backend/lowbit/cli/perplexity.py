"""`lowbit perplexity`: formats of a model against a text."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from lowbit.cli._common import (
    PRECISION_HELP,
    Arguments,
    add_source,
    err,
    out,
    shows_progress,
    size,
    source_options,
)
from lowbit.cli._quantiser import add_quantiser, quantiser_of

SUMMARY = "Measure what formats cost: perplexity on a text, distance from the original, size, speed."
_HEADINGS = ("format", "algorithm", "size", "bits/weight", "perplexity", "divergence", "tok/s")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    from lowbit.runtime import KV_DTYPES, PRECISIONS

    add_source(parser)
    parser.add_argument("--data", required=True, metavar="FILE", help="the text, UTF-8")
    parser.add_argument("--low-bit", nargs="+", default=["sym_int4"], metavar="FORMAT", help="default: sym_int4")
    parser.add_argument("--group-size", type=int, help="weights that share a scale: 32, 64 (default) or 128")
    parser.add_argument("--ctx", type=int, help="tokens of a window (default: the model's context, at most 2048)")
    parser.add_argument("--stride", type=int, help="tokens by which windows advance (default: a whole window)")
    parser.add_argument("--max-tokens", type=int, help="use no more tokens of the text")
    parser.add_argument("--kv-dtype", default="fp16", choices=KV_DTYPES, help="type of the key and value cache")
    parser.add_argument("--precision", choices=PRECISIONS, help=PRECISION_HELP)
    parser.add_argument("--no-reference", action="store_true", help="do not run the original beside it")
    parser.add_argument("--json", action="store_true", help="rows as JSON")
    parser.add_argument(
        "--plot", metavar="FILE", help="perplexity over bits per weight, as an image (needs matplotlib)"
    )
    add_quantiser(parser)


def execute(arguments: Arguments) -> None:
    """Prints a table with a row for each format."""
    from lowbit import eval, formats

    for name in arguments.low_bit:
        formats.resolve(name)  # before anything is downloaded or read
    text = Path(arguments.data).read_text(encoding="utf-8")
    rows = []
    table = eval.compare(
        arguments.model,
        text,
        arguments.low_bit,
        reference=None if arguments.no_reference else "fp32",
        ctx=arguments.ctx,
        stride=arguments.stride,
        max_tokens=arguments.max_tokens,
        quantiser=quantiser_of(arguments),
        show_progress=shows_progress(arguments),
        group_size=arguments.group_size,
        threads=arguments.threads,
        kv_dtype=arguments.kv_dtype,
        precision=arguments.precision,
        **source_options(arguments),
    )
    if not arguments.json:
        out(_line(_HEADINGS))
    for row in table:
        rows.append(row)
        if not arguments.json:
            out(_line(_cells(row)))
    if arguments.json:
        out(json.dumps([row.to_dict() for row in rows], indent=2) + "\n")
    if arguments.plot:
        _plot(rows, arguments.plot)
        err(f"wrote {arguments.plot}")


def _line(cells: tuple[str, ...]) -> str:
    left, right = cells[:2], cells[2:]
    return ("".join(f"{cell:<12}" for cell in left) + "".join(f"{cell:>12}" for cell in right)).rstrip() + "\n"


def _cells(row: Any) -> tuple[str, ...]:
    divergence = "-" if row.divergence is None else f"{row.divergence:.5f}"
    numbers = (f"{row.bits_per_weight:.2f}", f"{row.perplexity:.4f}", divergence, f"{row.tokens_per_second:.1f}")
    return (row.format, row.algorithm, size(row.size), *numbers)


def _plot(rows: list[Any], path: str) -> None:
    try:
        from matplotlib.figure import Figure  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        raise ImportError("--plot needs matplotlib: pip install matplotlib") from None
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([r.bits_per_weight for r in rows], [r.perplexity for r in rows], "o")
    for row in rows:
        axes.annotate(row.format, (row.bits_per_weight, row.perplexity), xytext=(4, 4), textcoords="offset points")
    axes.set_xlabel("bits per weight")
    axes.set_ylabel("perplexity")
    figure.savefig(path, dpi=150)
