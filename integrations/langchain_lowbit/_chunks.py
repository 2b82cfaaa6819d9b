"""Cuts texts, their metadata and their ids, however long, into the pieces in which they are embedded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]

# Texts embedded and added at a time: bounds the memory of a long iterable, and what is lost when one is interrupted.
CHUNK = 1024


def chunks(
    texts: Iterable[Any],
    metadatas: Iterable[dict[str, Any]] | None,
    ids: Iterable[str | None] | None,
    show_progress: bool,
) -> Iterator[list[tuple[Any, dict[str, Any], str | None]]]:
    """Yields lists of at most CHUNK (text, metadata, id); ValueError when the three are not of the same length."""
    if isinstance(texts, str):
        raise TypeError("texts must be a list of texts, not one text: pass [text]")
    columns = {"texts": iter(texts)}
    columns |= {n: iter(c) for n, c in (("metadatas", metadatas), ("ids", ids)) if c is not None}
    done = 0
    total = len(texts) if isinstance(texts, Sequence) else None
    with tqdm(total=total, unit="text", disable=not show_progress) as bar:
        while True:
            parts = {name: list(islice(column, CHUNK)) for name, column in columns.items()}
            count = len(parts["texts"])
            for name, part in parts.items():
                if len(part) != count:
                    counts = f"{done + len(part)} {name}, {done + count} texts"
                    raise ValueError(f"as many {name} as texts are needed; got at least {counts}")
            if not count:
                return
            found = parts.get("metadatas") or [{}] * count
            yield list(zip(parts["texts"], found, parts.get("ids") or [None] * count, strict=True))
            done += count
            bar.update(count)
