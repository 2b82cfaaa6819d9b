"""The options that say how weights are rounded, of `convert` and `perplexity`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lowbit.cli._common import Arguments


def add_quantiser(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("--algorithm", default="rtn", help="rtn (nearest, the default), awq, teq or gptq")
    parser.add_argument(
        "--calibration", metavar="FILE", help="text the algorithm reads; paragraphs are apart by a blank line"
    )
    parser.add_argument("--clip-search", action="store_true", help="search the best clip of every group")
    parser.add_argument("--imatrix", metavar="FILE", help="importance matrix of llama.cpp to weigh rounding errors by")


def texts_of(path: str) -> list[str]:
    """Returns the paragraphs of a calibration text, which are apart by a blank line."""
    whole = Path(path).read_text(encoding="utf-8")
    return [part.strip() for part in whole.split("\n\n") if part.strip()]


def quantiser_of(arguments: Arguments) -> Any:
    """Returns the Quantiser that was asked for. Raises ValueError or OSError with the cause."""
    from lowbit.calibration import Quantiser

    texts = texts_of(arguments.calibration) if arguments.calibration else []
    return Quantiser(
        arguments.algorithm, clip_search=arguments.clip_search, calibration=texts, imatrix=arguments.imatrix
    )
