"""`lowbit convert`: a model into a low-bit folder."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from lowbit.cli._common import (
    GROUP_SIZE_HELP,
    Arguments,
    add_source,
    out,
    shows_progress,
    source_options,
    stored_size,
)
from lowbit.cli._quantiser import add_quantiser, quantiser_of

SUMMARY = "Quantise a language model, an embedder or a reranker into a low-bit folder."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    from lowbit.runtime import PRECISIONS

    add_source(parser)
    parser.add_argument("out", help="the folder to write; an existing low-bit folder is replaced, anything else is not")
    parser.add_argument("--low-bit", metavar="FORMAT", help="default: sym_int4, sym_int8 for embedders and rerankers")
    parser.add_argument("--group-size", type=int, help=GROUP_SIZE_HELP)
    parser.add_argument("--head-format", metavar="FORMAT", help="format of the head (default: sym_int8)")
    parser.add_argument("--embedding-format", metavar="FORMAT", help="format of the embeddings (default: sym_int8)")
    parser.add_argument("--skip", action="append", metavar="NAME", help="leave modules of that name float; repeatable")
    parser.add_argument(
        "--module-format", action="append", type=_pair, default=[], metavar="NAME=FORMAT",
        help="another format for modules of that name, such as down_proj=sym_int8; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--precision", choices=PRECISIONS, help="auto (default) measures what int8 activations do; the others do not"
    )
    add_quantiser(parser)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FORMAT")
    return name, value


def execute(arguments: Arguments) -> None:
    """Quantises a language model, an embedder or a reranker and writes a low-bit folder."""
    from lowbit import checkpoint, formats
    from lowbit.loading import TASKS, load_model, task_of
    from lowbit.replaced import replacement
    from lowbit.runtime import Runtime
    from lowbit.sources.hub import Access

    folder = Path(arguments.out)
    for name in filter(None, (arguments.low_bit, arguments.head_format, arguments.embedding_format)):
        formats.resolve(name)  # before anything is downloaded or read
    _refuse_to_replace(folder)
    start = time.perf_counter()
    access = Access(arguments.cache_dir, arguments.token, arguments.local_files_only, shows_progress(arguments))
    model = replacement(arguments.model)
    task = task_of(model, arguments.revision, access)
    loaded = load_model(
        model,
        arguments.low_bit or TASKS[task],
        task=task,
        group_size=arguments.group_size,
        head_format=arguments.head_format,
        embedding_format=arguments.embedding_format,
        modules_to_not_convert=arguments.skip,
        module_formats=dict(arguments.module_format),
        quantiser=quantiser_of(arguments),
        runtime=Runtime(threads=arguments.threads, precision=arguments.precision).resolve(),
        show_progress=shows_progress(arguments),
        **source_options(arguments),
    )
    checkpoint.save(loaded, folder)
    seconds = time.perf_counter() - start
    out(f"{folder}: {loaded.quantization['format']}, {stored_size(folder)}, {seconds:.1f} s\n")


def _refuse_to_replace(folder: Path) -> None:
    """Raises FileExistsError when `folder` is something else than a free name, an empty folder or a low-bit folder.

    Stricter than `save_low_bit`, which may add to a folder of other files: a mistyped argument is likelier here.
    """
    from lowbit import checkpoint

    if (
        folder.exists()
        and not (folder / checkpoint.MANIFEST).exists()
        and not (folder.is_dir() and not any(folder.iterdir()))
    ):
        raise FileExistsError(f"{folder} exists and is not a low-bit folder: it is left alone; choose another name")
