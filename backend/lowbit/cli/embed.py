"""`lowbit embed`: a file of passages into a folder with an index."""

from __future__ import annotations

import argparse
import time

from lowbit.cli._common import (
    GROUP_SIZE_HELP,
    PRECISION_HELP,
    Arguments,
    add_source,
    err,
    out,
    shows_progress,
    source_options,
    stored_size,
)

SUMMARY = "Embed a file of passages into a folder with an index; run again, it goes on."

EMBEDDER = "BAAI/bge-small-en-v1.5"  # where none is named


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    from lowbit.runtime import PRECISIONS

    parser.add_argument("file", help=".jsonl (an object a line) or .txt (a passage a line)")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    add_source(parser, "--model", default=EMBEDDER)
    parser.add_argument("--low-bit", default="sym_int8", metavar="FORMAT", help="default: sym_int8")
    parser.add_argument("--group-size", type=int, help=GROUP_SIZE_HELP)
    parser.add_argument("--precision", choices=PRECISIONS, help=PRECISION_HELP)
    parser.add_argument(
        "--field", action="append", metavar="NAME", help="a field of each line with text (default: text); repeatable"
    )
    parser.add_argument("--index", choices=("flat", "ivf", "hnsw", "none"), default="flat", help="default: flat")
    parser.add_argument("--metric", choices=("cosine", "inner_product", "l2"), default="cosine", help="default: cosine")
    parser.add_argument("--prompt", help="put before every passage")
    parser.add_argument("--prompt-name", help="the same, one of the model's own prompts")
    parser.add_argument("--max-length", type=int, help="longest passage in tokens")
    parser.add_argument("--truncate", action="store_true", help="cut longer ones where the model's files do not say so")
    parser.add_argument("--batch-size", type=int, default=32, help="default: 32")


def execute(arguments: Arguments) -> None:
    """Embeds a file of passages into a folder, with an index; goes on where an earlier run was interrupted."""
    from lowbit import corpus, vector_index
    from lowbit.embed import Embedder

    passages = corpus.PassageFile(arguments.file, arguments.field or ("text",))
    if arguments.index != "none":  # told before hours of work
        faiss = vector_index.require_faiss()
        faiss.omp_set_num_threads(arguments.threads or faiss.omp_get_max_threads())
    start, progress = time.perf_counter(), shows_progress(arguments)
    embedder = Embedder(
        arguments.model,
        arguments.low_bit,
        group_size=arguments.group_size,
        precision=arguments.precision,
        max_length=arguments.max_length,
        truncate=arguments.truncate or None,
        threads=arguments.threads,
        show_progress=progress,
        **source_options(arguments),
    )
    try:
        done = corpus.embed_corpus(
            embedder,
            passages,
            arguments.out,
            batch_size=arguments.batch_size,
            prompt=arguments.prompt,
            prompt_name=arguments.prompt_name,
            show_progress=progress,
        )
    except KeyboardInterrupt:
        err(f"{arguments.out} keeps what is embedded so far; the same command goes on")
        raise
    if arguments.index != "none":
        corpus.build_index(done.folder, arguments.index, arguments.metric, show_progress=progress)
    count, dimension = done.vectors.shape
    out(
        f"{done.folder}: {count} passages, {dimension} dimensions, index {arguments.index}, "
        f"{stored_size(done.folder)}, {time.perf_counter() - start:.1f} s\n"
    )
