"""What the commands share: their streams, sizes in words, the options that say where a model comes from."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

Arguments = argparse.Namespace
PRECISION_HELP = (
    "activations that matrices read: int8 (fast), int8 or, where that was measured to do harm, bf16 (auto, the "
    "default), bf16 (bf16) or not rounded (high)"
)
GROUP_SIZE_HELP = (
    "weights that share a scale: 32, 64, 128 or 256 (default: 64; 32 for up to 4 bits of embedders and rerankers)"
)
_SOURCE = ("revision", "cache_dir", "token", "trust_remote_code", "local_files_only")


def err(text: str) -> None:
    """Writes a line to stderr."""
    sys.stderr.write(f"lowbit: {text}\n")


def out(text: str) -> None:
    """Writes text to stdout at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def size(count: float | None) -> str:
    """Returns bytes in a unit people read, "unknown" for None."""
    if count is None:
        return "unknown"
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while count >= 1024 and len(units) > 1:
        count /= 1024
        units.pop(0)
    return f"{count:.{0 if units[0] == 'B' else 1}f} {units[0]}"


def stored_size(folder: Path) -> str:
    """Returns the size of a folder's files in a unit people read."""
    return size(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))


def add_source(parser: argparse.ArgumentParser, name: str = "model", **options: Any) -> None:
    """Adds the argument that names a model and those that say how to get it."""
    parser.add_argument(name, help="hub id, Hugging Face folder or low-bit folder", **options)
    parser.add_argument("--revision", help="branch, tag or commit of a hub model")
    parser.add_argument("--cache-dir", help="where downloads are kept")
    parser.add_argument("--token", help="access token of the hub")
    parser.add_argument("--local-files-only", action="store_true", help="never download")
    parser.add_argument("--trust-remote-code", action="store_true", help="accept models that bring their own code")
    parser.add_argument("--threads", type=int, help="native threads (default: one per physical performance core)")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar")


def source_options(arguments: Arguments) -> dict[str, Any]:
    """Returns the loading options of `add_source` that were given."""
    return {name: getattr(arguments, name) for name in _SOURCE if getattr(arguments, name)}


def shows_progress(arguments: Arguments) -> bool:
    """Returns whether a progress bar is wanted and has somebody to see it."""
    return not arguments.quiet and sys.stderr.isatty()
