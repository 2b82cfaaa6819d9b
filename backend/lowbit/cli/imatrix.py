"""`lowbit imatrix`: what a model's inputs look like on a text, in llama.cpp's file."""

from __future__ import annotations

import argparse
from pathlib import Path

from lowbit.cli._common import Arguments, add_source, out, shows_progress, source_options
from lowbit.cli._quantiser import texts_of

SUMMARY = "Measure a language model's importance matrix on a text, for --imatrix and for llama.cpp."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_source(parser)
    parser.add_argument("out", help="the file to write (imatrix.dat)")
    parser.add_argument("--data", required=True, metavar="FILE", help="text; paragraphs are apart by a blank line")
    parser.add_argument("--tokens", type=int, default=16384, help="read no more tokens of it (default: 16384)")
    parser.add_argument("--ctx", type=int, default=512, help="tokens read together (default: 512)")


def execute(arguments: Arguments) -> None:
    """Measures on the float model and writes the file."""
    from lowbit.calibration import write_imatrix
    from lowbit.loading import measure

    options = {name: value for name, value in source_options(arguments).items() if name != "trust_remote_code"}
    importance, passes = measure(
        arguments.model,
        texts_of(arguments.data),
        tokens=arguments.tokens,
        length=arguments.ctx,
        show_progress=shows_progress(arguments),
        **options,
    )
    path = Path(arguments.out)
    write_imatrix(path, importance, passes, Path(arguments.data).name)
    out(f"{path}: {len(importance)} layers, {path.stat().st_size} bytes\n")
