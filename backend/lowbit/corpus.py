"""Embedding a corpus of any size: in chunks, so that what is done stays done, and into an index to search.

Interrupted at any moment, by Ctrl-C or a power cut, the same call goes on after the last chunk. It refuses to do so
with other passages, another model or other options: vectors of two models in one corpus would be noticed by nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped]

from lowbit import vector_folder
from lowbit.corpus_folder import DOCUMENTS, Corpus, CorpusWriter, checksum
from lowbit.embed import Embedder
from lowbit.passages import Passage, PassageFile
from lowbit.vector_index import VECTORS_PER_CELL, VectorIndex

__all__ = ["Corpus", "Passage", "PassageFile", "build_index", "embed_corpus"]

logger = logging.getLogger(__name__)

CHUNK = 512  # passages embedded and written at a time: what an interruption can cost
CHUNK_CHARACTERS = 2_000_000  # of text in a chunk, whichever comes first
BLOCK = 4096  # vectors given to an index at a time
PROBED = 16  # an "ivf" index looks at one cell in so many, and at so many at least
# Cosine of the first passage's vector on the disk with a fresh one below which it is not the same model. Measured with
# all-MiniLM-L6-v2 in sym_int8 on 200 passages, smallest: another tier 0.9998, products in fp32 0.9995; asym_int5 0.98.
SAME_VECTOR = 0.998


def embed_corpus(
    embedder: Embedder,
    passages: Iterable[Passage | str],
    folder: str | Path,
    *,
    batch_size: int = 32,
    normalize: bool | None = None,
    prompt: str | None = None,
    prompt_name: str | None = None,
    truncate_dim: int | None = None,
    show_progress: bool = False,
) -> Corpus:
    """Returns the folder with the vectors of all passages; one that exists is gone on with where it was interrupted.

    passages: a `PassageFile`, or any iterable of passages or strings that yields the same ones again when going on.
    Passages of white space alone are left out, which is logged. The other arguments are those of `Embedder.encode`.
    Memory holds a chunk (512 passages or 2 million characters) and the ids.

    Raises ValueError for passages, a model or options that the folder was not begun with, and for an id given twice;
    FileExistsError for a folder of other things; BlockingIOError while another process embeds into it; OSError when the
    disk is full. What was embedded until then is kept.

    >>> corpus = embed_corpus(embedder, PassageFile("articles.jsonl"), "articles")  # doctest: +SKIP
    >>> corpus.vectors.shape                                                        # doctest: +SKIP
    (100000, 384)
    """
    options: dict[str, Any] = {
        "prompt": prompt, "prompt_name": prompt_name, "normalize": normalize, "truncate_dim": truncate_dim,
    }  # fmt: skip
    encode = {**options, "batch_size": batch_size}
    embedder.encode([], **encode)  # bad options are told before the folder is made
    asked = {"source": getattr(passages, "about", {}), "model": _identity(embedder), "options": options}
    with CorpusWriter(Path(folder).expanduser(), asked, truncate_dim or embedder.dimension) as writer:
        total = len(passages) if isinstance(passages, Sized) else None
        with tqdm(total=total, unit=" passages", desc="Embedding", disable=not show_progress) as bar:
            rows = _with_text(passages)
            _pass_over(rows, writer, lambda text: embedder.encode([text], **encode)[0])
            bar.initial = bar.n = writer.passages  # so that the speed shown is that of this run
            for chunk in _chunks(rows):
                if writer.complete:
                    raise ValueError(f"{writer.folder} has {writer.passages} passages, there are more now; {_OTHER}")
                writer.add(chunk, embedder.encode([passage.text for passage in chunk], **encode))
                bar.update(len(chunk))
        if not writer.complete:
            writer.finish()
    return Corpus.open(folder)


def build_index(
    folder: str | Path,
    kind: str = "flat",
    metric: str = "cosine",
    options: Mapping[str, int] | None = None,
    show_progress: bool = False,
) -> None:
    """Makes the folder of a finished corpus that of a vector store too, with an index of its vectors; replaces another.

    kind, metric and options are those of `VectorIndex`. An "ivf" index gets about 4 * sqrt(passages) cells, trained on
    vectors from all over the corpus, and looks at a sixteenth of them, at least 16, where options say nothing else.
    Nothing is done where the index is there already. Raises ImportError without faiss, naming the extra; ValueError as
    `Corpus.open` and `VectorIndex`.
    """
    corpus = Corpus.open(folder)
    chosen = {**(_cells(len(corpus)) if kind == "ivf" else {}), **(options or {})}
    index = VectorIndex(corpus.vectors.shape[1], metric, kind, chosen)
    about = {"embedding": corpus.about["model"]["name"], "corpus": corpus.about["crc32"]}
    if _is_there(corpus.folder, index, about):
        return
    needed = VECTORS_PER_CELL * index.options.get("nlist", 0)
    if kind == "ivf" and len(corpus) >= needed:  # with fewer it stays flat
        count = min(len(corpus), 2 * needed)
        index.train(corpus.vectors[np.sort(np.random.default_rng(0).choice(len(corpus), count, replace=False))])
    with tqdm(total=len(corpus), unit=" vectors", desc="Indexing", disable=not show_progress) as bar:
        for start in range(0, len(corpus), BLOCK):
            bar.update(len(index.add(corpus.vectors[start : start + BLOCK])))
    vector_folder.save(corpus.folder, index, corpus.folder / DOCUMENTS, about)


def _cells(count: int) -> dict[str, int]:
    cells = max(1, min(2 ** round(np.log2(4 * count**0.5)), count // VECTORS_PER_CELL))
    return {"nlist": cells, "nprobe": min(cells, max(PROBED, cells // PROBED))}


def _is_there(folder: Path, index: VectorIndex, about: Mapping[str, Any]) -> bool:
    if not (folder / vector_folder.MANIFEST).exists():
        return False
    manifest, wanted = vector_folder.read_manifest(folder), index.state()
    same = all(manifest["index"].get(name) == wanted[name] for name in ("dimension", "metric", "kind", "options"))
    return same and all(manifest.get(name) == value for name, value in about.items())


def _with_text(passages: Iterable[Passage | str]) -> Iterator[Passage]:
    """Yields the passages that have text, each under an id of its own."""
    seen: set[str] = set()
    empty = 0
    for number, passage in enumerate(passages):
        if isinstance(passage, str):
            passage = Passage(passage, str(number))
        elif not isinstance(passage, Passage):
            kind = "None" if passage is None else type(passage).__name__
            raise TypeError(f"passages[{number}] is {kind}, it must be a string or a Passage")
        if passage.id in seen:
            raise ValueError(f"passages[{number}] has the id {passage.id!r} of an earlier one; each needs its own")
        seen.add(passage.id)
        if passage.text and not passage.text.isspace():
            yield passage
        else:
            empty += 1
    if empty:
        logger.warning("%d passages without text were left out", empty)


def _chunks(passages: Iterator[Passage]) -> Iterator[list[Passage]]:
    chunk: list[Passage] = []
    characters = 0
    for passage in passages:
        chunk.append(passage)
        characters += len(passage.text)
        if len(chunk) == CHUNK or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


_OTHER = "give the same ones again, or another folder"


def _pass_over(rows: Iterator[Passage], writer: CorpusWriter, encode: Callable[[str], np.ndarray]) -> None:
    """Reads the passages that are embedded already; compares them, and the vector of the first, with the folder's."""
    so_far, done = 0, writer.passages
    for number in range(done):
        passage = next(rows, None)
        if passage is None:
            raise ValueError(f"{writer.folder} has {done} passages already, there are only {number} now; {_OTHER}")
        if number == 0 and (cosine := _cosine(writer.first_vector(), encode(passage.text))) < SAME_VECTOR:
            raise ValueError(
                f"{writer.folder} was begun with another model: it gives the first passage another vector now (cosine "
                f"{cosine:.3f}); give the same model, or another folder"
            )
        so_far = checksum(passage, so_far)
    if so_far != writer.checksum:
        raise ValueError(f"{writer.folder} has {done} passages that are not the first {done} given now; {_OTHER}")


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if lengths else 1.0


def _identity(embedder: Embedder) -> dict[str, Any]:
    """What must be the same for vectors to be comparable, JSON-ready."""
    return {
        "name": embedder.model_id,
        "family": embedder.spec.family,
        "pooling": embedder.pooling,
        "max_length": embedder.max_length,
        "precision": embedder.runtime.precision,
        **embedder.quantization,
    }
